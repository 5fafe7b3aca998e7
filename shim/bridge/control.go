package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
)

// control is a connection to the switch's control socket. It speaks JSON-RPC
// itself, since starting ovs-appctl takes longer than most commands. The switch
// carries out the commands of one connection in their order, and those that came
// in one piece, up to ten, without doing anything between them, but where one has
// to wait.
type control struct {
	conn    net.Conn
	replies *json.Decoder
	stop    func() bool
	asked   []command // Whose replies have not been read.
}

// command is a name and arguments.
type command []string

func (b *Bridge) dialControl(ctx context.Context) (*control, error) {
	target, err := b.controlSocket()
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", target)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	return &control{conn: conn, replies: json.NewDecoder(conn), stop: stop}, nil
}

func (c *control) close() {
	c.stop()
	c.conn.Close()
}

// ask sends commands in one piece.
func (c *control) ask(commands ...command) error {
	var out []byte
	for i, words := range commands {
		request, err := json.Marshal(map[string]any{"method": words[0], "params": words[1:], "id": i})
		if err != nil {
			return err
		}
		out = append(out, request...)
	}
	c.asked = append(c.asked, commands...)
	_, err := c.conn.Write(out)
	return err
}

// reply is what the switch answers to the first command whose reply has not been
// read.
func (c *control) reply() (string, error) {
	name := c.asked[0][0]
	c.asked = c.asked[1:]
	var reply struct {
		Result, Error *string
	}
	if err := c.replies.Decode(&reply); err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	if reply.Error != nil {
		return "", fmt.Errorf("%s: the switch refuses: %s", name, *reply.Error)
	}
	if reply.Result == nil {
		return "", nil
	}
	return *reply.Result, nil
}

// control has the switch carry out commands, and returns what it answers to each.
func (b *Bridge) control(ctx context.Context, commands ...command) (replies []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	c, err := b.dialControl(ctx)
	if err != nil {
		return nil, err
	}
	defer c.close()
	if err := c.ask(commands...); err != nil {
		return nil, errors.Join(err, ctx.Err())
	}
	for range commands {
		reply, err := c.reply()
		if err != nil {
			return nil, errors.Join(err, ctx.Err())
		}
		replies = append(replies, reply)
	}
	return replies, nil
}
