package nft

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Watcher hears of changes to tables, chains and rules (not of set elements) that
// anybody makes in the namespace it was opened in.
type Watcher struct{ conn *netlink.Conn }

// Watch starts listening. What happens after it returned is not missed.
func Watch() (*Watcher, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open nftables event socket: %w", err)
	}
	if err := errors.Join(conn.SetReadBuffer(4<<20), conn.JoinGroup(unix.NFNLGRP_NFTABLES)); err != nil {
		conn.Close()
		return nil, fmt.Errorf("listen for nftables changes: %w", err)
	}
	return &Watcher{conn}, nil
}

// Change is what happened to one table; Table is empty when events were lost.
type Change struct {
	Table   string
	Deleted bool // the table itself is gone
}

// Next waits for the next changes.
func (w *Watcher) Next(ctx context.Context) ([]Change, error) {
	stop := context.AfterFunc(ctx, func() { _ = w.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		msgs, err := w.conn.Receive()
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case errors.Is(err, syscall.ENOBUFS):
			return []Change{{}}, nil
		case err != nil:
			return nil, fmt.Errorf("receive nftables changes: %w", err)
		}
		if changes := parse(msgs); len(changes) > 0 {
			return changes, nil
		}
	}
}

// Close ends the subscription.
func (w *Watcher) Close() error { return w.conn.Close() }

func parse(msgs []netlink.Message) []Change {
	var changes []Change
	for _, m := range msgs {
		if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < 4 {
			continue
		}
		switch m.Header.Type & 0xff {
		case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE, unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		default:
			continue
		}
		c := Change{Table: tableOf(m.Data[4:]), Deleted: m.Header.Type&0xff == unix.NFT_MSG_DELTABLE}
		if n := len(changes); n == 0 || changes[n-1] != c {
			changes = append(changes, c)
		}
	}
	return changes
}

// tableOf reads the table's name: attribute 1 of tables, chains and rules alike.
func tableOf(data []byte) string {
	d, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return ""
	}
	for d.Next() {
		if d.Type() == unix.NFTA_TABLE_NAME {
			return d.String()
		}
	}
	return ""
}
