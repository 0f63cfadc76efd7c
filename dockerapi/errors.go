package dockerapi

import (
	"fmt"
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/common"
)

var errPageNotFound = errdefs.ErrNotFound.WithMessage("page not found")

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

func conflict(format string, args ...any) error {
	return errdefs.ErrConflict.WithMessage(fmt.Sprintf(format, args...))
}

func notFound(format string, args ...any) error {
	return errdefs.ErrNotFound.WithMessage(fmt.Sprintf(format, args...))
}

func unsupported(format string, args ...any) error {
	return errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf(format, args...))
}

// statusOf is the one place where kinds of errors become statuses.
func statusOf(err error) int {
	for _, k := range []struct {
		is     func(error) bool
		status int
	}{
		{errdefs.IsNotFound, http.StatusNotFound},
		{errdefs.IsInvalidArgument, http.StatusBadRequest},
		{errdefs.IsOutOfRange, http.StatusBadRequest},
		{errdefs.IsConflict, http.StatusConflict},
		{errdefs.IsAlreadyExists, http.StatusConflict},
		{errdefs.IsFailedPrecondition, http.StatusConflict},
		{errdefs.IsUnauthorized, http.StatusUnauthorized},
		{errdefs.IsPermissionDenied, http.StatusForbidden},
		{errdefs.IsNotModified, http.StatusNotModified},
		{errdefs.IsNotImplemented, http.StatusNotImplemented},
		{errdefs.IsUnavailable, http.StatusServiceUnavailable},
	} {
		if k.is(err) {
			return k.status
		}
	}
	return http.StatusInternalServerError
}

func writeError(w http.ResponseWriter, status int, message string) {
	if status == http.StatusNotModified { // has no body
		w.WriteHeader(status)
		return
	}
	_ = writeJSON(w, status, common.ErrorResponse{Message: message})
}
