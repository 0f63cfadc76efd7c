package container

import (
	"fmt"
	"math/rand/v2"
)

// Random names are a mood and a thing from a harbour: easy to say, easy to type.
var (
	moods = []string{
		"able", "amber", "bold", "brave", "breezy", "bright", "brisk", "calm", "candid", "clear", "clever", "coastal", "crisp", "eager",
		"early", "fair", "fleet", "fresh", "gentle", "glad", "golden", "hardy", "hearty", "jolly", "keen", "kind", "lively", "lucid",
		"merry", "mellow", "nimble", "noble", "patient", "placid", "plucky", "prime", "quiet", "quick", "ready", "salty", "serene", "sharp",
		"silver", "smooth", "solid", "spry", "stable", "steady", "stout", "sunny", "swift", "tidal", "tidy", "true", "vivid", "warm",
	}
	things = []string{
		"albatross", "anchor", "barge", "barnacle", "beacon", "bollard", "bosun", "bowline", "breaker", "brig", "buoy", "capstan", "catamaran",
		"clipper", "cockle", "compass", "coral", "cormorant", "crane", "cutter", "dinghy", "dock", "dolphin", "dory", "drydock", "estuary", "ferry",
		"frigate", "galleon", "gangway", "gull", "harbour", "hawser", "heron", "hull", "jetty", "kayak", "keel", "ketch", "lagoon", "lantern",
		"lighthouse", "lugger", "marina", "mast", "mooring", "osprey", "otter", "packet", "pelican", "petrel", "pier", "pilot", "porpoise", "quay",
		"rigging", "rudder", "schooner", "sextant", "skiff", "sloop", "spinnaker", "tern", "tiller", "trawler", "tugboat", "turtle", "wharf", "yawl",
	}
)

// randomName makes a name; from the second try on with a number behind it.
func randomName(try int) string {
	name := moods[rand.IntN(len(moods))] + "_" + things[rand.IntN(len(things))]
	if try > 0 {
		name = fmt.Sprintf("%s%d", name, rand.IntN(1000))
	}
	return name
}
