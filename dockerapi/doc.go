// Package dockerapi is the front door that speaks the Docker Engine API.
//
// It turns requests of the docker command, compose, testcontainers and the SDKs into
// calls on the rooms of engine/, and what they answer into Docker's JSON. It owns the
// wire: version prefixes and negotiation headers, error bodies, progress streams, the
// hijacked connections of attach and exec, and which field exists since when. It never
// decides anything about a container or an image and holds no state: what Docker wants
// back later (the original create request, say) is kept by the engine as an opaque note.
//
// A request comes in through Server.ServeHTTP, which takes off the version prefix, finds
// the route and runs its handler. A handler reads its arguments, calls the engine and
// writes the reply; an error that it returns becomes a status and {"message": …} in one
// place (errors.go). Once the first byte of a stream is out, errors travel in the stream.
//
// Served are versions 1.24 to 1.51. Fields that a later version dropped or renamed
// within that span are all sent, because clients ignore what they do not know and break
// on what they miss (legacyAddresses, legacyEvent, legacySummaries).
package dockerapi
