package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"

	"github.com/weirnet/weir/shim/bridge/openflow"
)

// Settle returns when every packet that arrives from now on meets the flows of
// the last Apply. A bundle that is committed is in the tables, but packets of
// known kinds go by the datapath's cache, which the switch brings up to date on
// threads of its own, some time after.
//
// With a datapath in the kernel, Settle waits for two whole passes over that
// cache to end: the first may have begun before the commit, the second has not.
// So that the second does not wait for its timer, the touch flow, which must be
// one that the bridge holds, is put in once more as it is.
//
// The userspace datapath of Open vSwitch 3.1 cannot be waited for: a pass that
// finds other actions for a cached flow looks that flow up by a packet, may
// find another that overlaps it, and changes that one; the stale one stays for
// as long as packets hit it. So its cache is emptied instead, at the price of
// one look-up through the tables for each kind of packet.
func (b *Bridge) Settle(ctx context.Context, touch openflow.Flow) error {
	steps := []func() error{
		func() error { return b.control(ctx, "revalidator/wait") },
		func() error { return b.Apply(ctx, Change{Upsert: []openflow.Flow{touch}}) },
		func() error { return b.control(ctx, "revalidator/wait") },
	}
	if b.cfg.DatapathType == "netdev" {
		steps = []func() error{func() error { return b.control(ctx, "revalidator/purge") }}
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("settle bridge %s: %w", b.cfg.Name, err)
		}
	}
	return nil
}

// control has the switch carry out a command without arguments. It speaks the
// control socket's JSON-RPC itself, since starting ovs-appctl takes longer than
// the command.
func (b *Bridge) control(ctx context.Context, command string) error {
	target, err := b.controlSocket()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", target)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if _, err := fmt.Fprintf(conn, `{"method":%q,"params":[],"id":1}`, command); err != nil {
		return errors.Join(err, ctx.Err())
	}
	var reply struct {
		Error *string `json:"error"`
	}
	if err := json.NewDecoder(conn).Decode(&reply); err != nil {
		return fmt.Errorf("%s: %w", command, errors.Join(err, ctx.Err()))
	}
	if reply.Error != nil {
		return fmt.Errorf("%s: %s", command, *reply.Error)
	}
	return nil
}
