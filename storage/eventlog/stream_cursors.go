package eventlog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go/jetstream"
)

// streamCursors are the cursors of one collector, in a bucket. With each is how
// many records there were up to it, since that cannot be told of a cursor when
// its message is gone.
type streamCursors struct{ *stream }

// cursors implements backend.
func (s *stream) cursors() cursorStore { return streamCursors{s} }

// key of a name in the bucket, whose keys may not have all characters.
func (c streamCursors) key(name string) string {
	return fmt.Sprintf("%x.%x", c.cfg.NATS.Collector, name)
}

func (c streamCursors) load(name string) (uint64, []byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), streamReadTimeout)
	defer cancel()
	e, err := c.kv.Get(ctx, c.key(name))
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return 0, nil, nil
	}
	if err != nil {
		return 0, nil, err
	}
	b := e.Value()
	if len(b) < 16 {
		return 0, nil, fmt.Errorf("key %s of bucket %s: %w", c.key(name), c.kv.Bucket(), errCorrupt)
	}
	cursor := binary.BigEndian.Uint64(b)
	if n := binary.BigEndian.Uint64(b[8:]); n != unknownTotal {
		c.mu.Lock()
		c.loaded[cursor] = n
		c.mu.Unlock()
	}
	return cursor, b[16:], nil
}

const unknownTotal = ^uint64(0)

func (c streamCursors) store(name string, cursor uint64, state []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), streamReadTimeout)
	defer cancel()
	n, known, err := c.totalAt(ctx, cursor)
	if err != nil || !known {
		n = unknownTotal
	}
	b := binary.BigEndian.AppendUint64(nil, cursor)
	b = binary.BigEndian.AppendUint64(b, n)
	_, err = c.kv.Put(ctx, c.key(name), append(b, state...))
	return err
}
