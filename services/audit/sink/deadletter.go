package sink

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
)

// DefaultDeadBytes is how much of refused lines is kept of a sink.
const DefaultDeadBytes = 64 << 20

// deadLetters keeps lines that a receiver refused for good: as many of the latest
// as there is room for.
type deadLetters struct {
	path   string
	most   int64 // Bytes.
	logger hclog.Logger
	file   *file
}

// deadLetter is a line of the file.
type deadLetter struct {
	Time  time.Time `json:"time"`
	Error string    `json:"error"`
	Line  string    `json:"line,omitempty"` // Empty: the receiver does not say which.
}

// add writes a line, and the one before it to the other of two files when there
// is no room.
func (d *deadLetters) add(line string, reason error) error {
	now := time.Now()
	if d.file == nil {
		f, err := openFile(d.path, Rotation{MaxBytes: d.most / 2, Keep: 1}, time.Now)
		if err != nil {
			return fmt.Errorf("dead letters: %w", err)
		}
		d.file = f
	}
	b, err := json.Marshal(deadLetter{now.UTC(), reason.Error(), line})
	if err != nil {
		return fmt.Errorf("dead letters: %w", err)
	}
	b = append(b, '\n')
	d.logger.Warn("a receiver refuses a line for good; it is among the dead letters", "file", d.path, "err", reason)
	if d.file.full(len(b)) {
		if err := d.file.rotate(func(string) {}); err != nil {
			return fmt.Errorf("dead letters: %w", err)
		}
		if err := sweep(d.path, d.file.rotation, now, func(string) bool { return false }); err != nil {
			return fmt.Errorf("dead letters: %w", err)
		}
	}
	return d.file.write(b)
}

func (d *deadLetters) sync() error {
	if d.file == nil {
		return nil
	}
	return d.file.sync()
}

func (d *deadLetters) close() error {
	if d.file == nil {
		return nil
	}
	f := d.file
	d.file = nil
	return f.close()
}
