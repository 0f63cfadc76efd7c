package server

import (
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"slipway.dev/slipway/engine/warden"
)

// maxFiles bounds the descriptor store.
const maxFiles = 4096

// keptFile is a descriptor that the daemon left here under a name: a listener, a reserved port. It stays a bare
// descriptor: as an os.File every connection to a kept listener would wake the warden.
type keptFile struct {
	srv  *Server
	name string
}

func (k keptFile) holderKey() warden.Key { return warden.Key{Kind: warden.HoldFile, ID: k.name} }

func (k keptFile) hold() (*warden.Message, error) {
	k.srv.mu.Lock()
	defer k.srv.mu.Unlock()
	fd, ok := k.srv.files[k.name]
	if !ok {
		return nil, nil
	}
	copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	return &warden.Message{
		Method: warden.PushHold, FDs: []int{copied},
		Body: warden.Encode(warden.Hold{Key: k.holderKey(), Roles: []string{warden.RoleFile}}),
	}, nil
}

// keep answers MethodKeep; a file of the same name is replaced.
func (s *Server) keep(_ *conn, m *warden.Message, h warden.Hold) error {
	if len(m.FDs) != 1 || h.ID == "" || len(h.ID) > 1024 {
		return fmt.Errorf("keep %q: it takes a name and one descriptor: %w", h.ID, errdefs.ErrInvalidArgument)
	}
	s.mu.Lock()
	old, replaced := s.files[h.ID]
	if !replaced && len(s.files) >= maxFiles {
		s.mu.Unlock()
		return fmt.Errorf("keep %q: %d descriptors are kept already: %w", h.ID, maxFiles, errdefs.ErrFailedPrecondition)
	}
	s.files[h.ID], m.FDs = m.FDs[0], nil
	s.mu.Unlock()
	if replaced {
		unix.Close(old)
	}
	s.share(keptFile{s, h.ID})
	return nil
}

func (s *Server) drop(t warden.Target) error {
	s.mu.Lock()
	fd, ok := s.files[t.ID]
	delete(s.files, t.ID)
	s.mu.Unlock()
	if !ok {
		return nil
	}
	unix.Close(fd)
	s.release(warden.Key{Kind: warden.HoldFile, ID: t.ID})
	return nil
}
