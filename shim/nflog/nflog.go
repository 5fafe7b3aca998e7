// Package nflog reads what the log statements of a host's firewall report: the
// prefix that they give, and the packet from its IP header on.
//
// The kernel numbers its reports. What it could not deliver, for the socket was
// full, is missing among the numbers and is counted as lost, once a report comes
// after it. Whoever reads is never in the packets' way.
//
// Read nflog_test.go first; it needs root and nftables.
package nflog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Message types, attributes and commands of linux/netfilter/nfnetlink_log.h.
const (
	msgPacket = unix.NFNL_SUBSYS_ULOG << 8 // And zero.
	msgConfig = unix.NFNL_SUBSYS_ULOG<<8 | 1

	attrPayload = 9
	attrPrefix  = 10
	attrSeq     = 12

	cfgCmd     = 1
	cfgMode    = 2
	cfgTimeout = 4
	cfgFlags   = 6

	cmdBind    = 1
	copyPacket = 2
	flagSeq    = 1
)

const (
	copyRange  = 0xffff  // The rules say how much.
	gatherFor  = 5       // In 1/100 s: for how long the kernel gathers reports.
	bufferSize = 4 << 20 // Of the socket.
)

// Reader has a group's reports.
type Reader struct {
	conn *netlink.Conn
	next uint32 // Number of the next report; of no meaning before the first.
	any  bool   // There was a report.
	lost atomic.Uint64
}

// Open binds the group in the network namespace of the calling thread. Only one
// reader can have a group.
func Open(group uint16) (*Reader, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("NFLOG: %w", err)
	}
	r := &Reader{conn: conn}
	if err := r.configure(group); err != nil {
		conn.Close()
		return nil, fmt.Errorf("NFLOG: bind group %d: %w", group, err)
	}
	return r, nil
}

func (r *Reader) configure(group uint16) error {
	if err := r.conn.SetReadBuffer(bufferSize); err != nil {
		return err
	}
	mode := append(binary.BigEndian.AppendUint32(nil, copyRange), copyPacket, 0)
	// In one message: once bound, reports may come between question and answer.
	body, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: cfgCmd, Data: []byte{cmdBind}},
		{Type: cfgMode, Data: mode},
		{Type: cfgTimeout, Data: binary.BigEndian.AppendUint32(nil, gatherFor)},
		{Type: cfgFlags, Data: []byte{0, flagSeq}},
	})
	if err != nil {
		return err
	}
	header := binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0}, group)
	_, err = r.conn.Execute(netlink.Message{Header: netlink.Header{Type: msgConfig, Flags: netlink.Request | netlink.Acknowledge},
		Data: append(header, body...)})
	return err
}

// Close gives the group back.
func (r *Reader) Close() error { return r.conn.Close() }

// TakeLost is how many reports never arrived since it was last asked.
func (r *Reader) TakeLost() uint64 { return r.lost.Swap(0) }

// Run hands reports on until the context ends. The packet may be kept.
func (r *Reader) Run(ctx context.Context, fn func(prefix string, packet []byte)) error {
	stop := context.AfterFunc(ctx, func() { _ = r.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		messages, err := r.conn.Receive()
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.ENOBUFS): // The numbers say how many.
			continue
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("NFLOG: receive: %w", err)
		}
		for _, m := range messages {
			if m.Header.Type == msgPacket {
				r.take(m.Data, fn)
			}
		}
	}
}

// take reads one report.
func (r *Reader) take(data []byte, fn func(prefix string, packet []byte)) {
	if len(data) < 4 {
		return
	}
	attrs, err := netlink.NewAttributeDecoder(data[4:])
	if err != nil {
		return
	}
	attrs.ByteOrder = binary.BigEndian
	var prefix string
	var packet []byte
	for attrs.Next() {
		switch attrs.Type() {
		case attrPrefix:
			prefix = attrs.String()
		case attrPayload:
			packet = attrs.Bytes()
		case attrSeq:
			r.number(attrs.Uint32())
		}
	}
	if attrs.Err() == nil && packet != nil {
		fn(prefix, packet)
	}
}

// number counts the reports that are missing before one.
func (r *Reader) number(n uint32) {
	if missing := n - r.next; r.any && missing < 1<<31 {
		r.lost.Add(uint64(missing))
	}
	r.any, r.next = true, n+1
}
