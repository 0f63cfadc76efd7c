package registry

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"github.com/containerd/errdefs"

	"slipway.dev/slipway/engine/image"
)

// code is one of the specification's error codes with the status that goes with it.
type code struct {
	name   string
	status int
}

var (
	codeBlobUnknown         = code{"BLOB_UNKNOWN", http.StatusNotFound}
	codeUploadInvalid       = code{"BLOB_UPLOAD_INVALID", http.StatusBadRequest}
	codeUploadOutOfOrder    = code{"BLOB_UPLOAD_INVALID", http.StatusRequestedRangeNotSatisfiable}
	codeUploadUnknown       = code{"BLOB_UPLOAD_UNKNOWN", http.StatusNotFound}
	codeDigestInvalid       = code{"DIGEST_INVALID", http.StatusBadRequest}
	codeDenied              = code{"DENIED", http.StatusForbidden}
	codeManifestBlobUnknown = code{"MANIFEST_BLOB_UNKNOWN", http.StatusNotFound}
	codeManifestInvalid     = code{"MANIFEST_INVALID", http.StatusBadRequest}
	codeManifestUnknown     = code{"MANIFEST_UNKNOWN", http.StatusNotFound}
	codeNameInvalid         = code{"NAME_INVALID", http.StatusBadRequest}
	codeNameUnknown         = code{"NAME_UNKNOWN", http.StatusNotFound}
	codeNotFound            = code{"UNSUPPORTED", http.StatusNotFound}
	codeSizeInvalid         = code{"SIZE_INVALID", http.StatusRequestEntityTooLarge}
	codeTooMany             = code{"TOOMANYREQUESTS", http.StatusTooManyRequests}
	codeUnsupported         = code{"UNSUPPORTED", http.StatusMethodNotAllowed}
	codeUnknown             = code{"UNKNOWN", http.StatusInternalServerError}
)

// apiError is an error with its code chosen.
type apiError struct {
	code    code
	message string
}

func (e *apiError) Error() string { return e.message }

func errorOf(c code, message string) error { return &apiError{c, message} }

// as chooses the code that a kind of error has in this place, unless it has one already.
func as(c code, kind func(error) bool, err error) error {
	var chosen *apiError
	if err == nil || errors.As(err, &chosen) || !kind(err) {
		return err
	}
	return errorOf(c, err.Error())
}

func missing(c code, err error) error { return as(c, errdefs.IsNotFound, err) }

func quote(s string) string { return strconv.Quote(s) }

func (g *registry) fail(w http.ResponseWriter, r *http.Request, err error) {
	if errors.Is(r.Context().Err(), context.Canceled) {
		return // nobody is listening any more
	}
	e := choose(err)
	if e.code == codeUnknown {
		g.log.Error("registry request failed", "method", r.Method, "path", r.URL.Path, "err", err)
	}
	if e.code == codeTooMany {
		w.Header().Set("Retry-After", "10")
	}
	type one struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Detail  any    `json:"detail"`
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.code.status)
	_ = json.NewEncoder(w).Encode(map[string][]one{"errors": {{Code: e.code.name, Message: e.message}}})
}

func choose(err error) *apiError {
	var chosen *apiError
	var blob *image.MissingBlobError
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &chosen):
		return chosen
	case errors.As(err, &blob):
		return &apiError{codeManifestBlobUnknown, err.Error()}
	case errors.As(err, &large):
		return &apiError{codeSizeInvalid, err.Error()}
	case errors.Is(err, image.ErrInUse):
		return &apiError{codeUnsupported, err.Error()}
	case errdefs.IsResourceExhausted(err):
		return &apiError{codeTooMany, err.Error()}
	case errdefs.IsNotImplemented(err):
		return &apiError{codeDigestInvalid, err.Error()}
	case errdefs.IsInvalidArgument(err):
		return &apiError{codeDigestInvalid, err.Error()}
	}
	return &apiError{codeUnknown, err.Error()}
}
