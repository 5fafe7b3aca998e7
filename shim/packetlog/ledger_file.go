package packetlog

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"time"

	"github.com/weirnet/weir/storage/faultpoint"
)

// The file of a Ledger is frames: length, checksum, content. The first says whose it
// is; the last may be torn.
const (
	frameHead   = 'h' // Version, machine, boot, what of it has arrived.
	frameClass  = 'c' // An account, as of what has arrived.
	frameShares = 's' // Of events that follow those before, as of what has arrived.
	frameRead   = 'r' // When meters were read, in Unix nanoseconds.
)

const ledgerVersion = 1

var errLedger = errors.New("it is of another version, or damaged")

func appendFrame(b, content []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(content)))
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(content))
	return append(b, content...)
}

func (l *Ledger) appendHead(b []byte) []byte {
	c := append([]byte{frameHead}, ledgerVersion)
	c = appendText(c, l.machine)
	c = appendText(c, l.boot)
	return appendFrame(b, binary.AppendUvarint(c, l.acked))
}

func (l *Ledger) appendAccount(b []byte, id uint32, a Account) []byte {
	c := binary.AppendUvarint([]byte{frameClass}, l.acked)
	c = binary.AppendUvarint(c, uint64(id))
	c = binary.AppendVarint(c, int64(a.Born))
	c = binary.AppendVarint(c, a.Base)
	c = binary.AppendVarint(c, a.OverRate)
	discarded := byte(0)
	if a.Discarded {
		discarded = 1
	}
	return appendFrame(b, append(c, discarded))
}

func (l *Ledger) appendShares(b []byte, lists [][]share) []byte {
	c := binary.AppendUvarint([]byte{frameShares}, l.acked)
	for _, shares := range lists {
		c = binary.AppendUvarint(c, uint64(len(shares)))
		for _, s := range shares {
			n := s.count << 1
			if s.overRate {
				n |= 1
			}
			c = binary.AppendUvarint(binary.AppendUvarint(c, uint64(s.class)), n)
		}
	}
	return appendFrame(b, c)
}

func appendRead(b []byte, at time.Time) []byte {
	return appendFrame(b, binary.AppendVarint([]byte{frameRead}, at.UnixNano()))
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// putLocked appends to the file.
func (l *Ledger) putLocked(b []byte) {
	if l.file == nil || l.size > ledgerMost {
		l.rewriteLocked() // It has what b says.
		return
	}
	n, err := l.file.Write(b)
	if l.size += n; err != nil {
		l.loseLocked(err)
	}
}

// rewriteLocked puts a file that says the same, and no more, in the place of the
// file.
func (l *Ledger) rewriteLocked() {
	b := l.appendHead(nil)
	for id, a := range l.classes {
		b = l.appendAccount(b, id, *a)
	}
	b = l.appendShares(b, l.tail)
	if !l.read.IsZero() {
		b = appendRead(b, l.read)
	}
	f, err := os.OpenFile(l.path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err == nil {
		if _, err = f.Write(b); err == nil {
			err = os.Rename(l.path+".new", l.path)
		}
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}
	if err != nil {
		l.loseLocked(err)
		return
	}
	faultpoint.Reach("shim.log.rewritten")
	if l.file != nil {
		_ = l.file.Close()
	}
	l.file, l.size, l.failing = f, len(b), false
}

// loseLocked removes a file that does not say what it should.
func (l *Ledger) loseLocked(err error) {
	if l.file != nil {
		_ = l.file.Close()
		l.file = nil
	}
	err = errors.Join(err, os.RemoveAll(l.path+".new"), os.RemoveAll(l.path))
	if !l.failing {
		l.failing = true
		l.logger.Error("a shim that ends now cannot say how much was lost with it", "file", l.path, "err", err)
	}
}

// load takes in what the file says.
func (l *Ledger) load() error {
	file, err := os.ReadFile(l.path)
	if err != nil {
		return err
	}
	first := true
	for len(file) > 0 {
		n, k := binary.Uvarint(file)
		if k <= 0 || n > uint64(len(file)) || uint64(len(file)-k) < n+4 {
			break // Torn: what follows was not sent.
		}
		content := file[k+4 : k+4+int(n)]
		if crc32.ChecksumIEEE(content) != binary.LittleEndian.Uint32(file[k:]) {
			return errLedger
		}
		if file = file[k+4+int(n):]; !l.readFrame(content, first) {
			return errLedger
		}
		first = false
	}
	if first {
		return errLedger
	}
	return nil
}

func (l *Ledger) readFrame(content []byte, first bool) bool {
	if len(content) == 0 || first != (content[0] == frameHead) {
		return false
	}
	d := numbers{rest: content[1:]}
	switch content[0] {
	case frameHead:
		if d.unsigned() != ledgerVersion {
			return false
		}
		machine := d.text()
		l.boot, l.acked = d.text(), d.unsigned()
		l.elsewhere = machine != l.machine
	case frameClass:
		l.ackLocked(d.unsigned())
		id := uint32(d.unsigned())
		a := &Account{Born: time.Duration(d.signed()), Base: d.signed(), OverRate: d.signed(), Discarded: d.unsigned() == 1}
		if l.elsewhere {
			a.Born = -1
		}
		l.classes[id] = a
	case frameShares:
		l.ackLocked(d.unsigned())
		for len(d.rest) > 0 && !d.bad {
			var shares []share
			for range d.unsigned() {
				s := share{class: uint32(d.unsigned())}
				n := d.unsigned()
				if s.count, s.overRate = n>>1, n&1 == 1; d.bad {
					return false
				}
				shares = append(shares, s)
			}
			l.tail = append(l.tail, shares)
		}
	case frameRead:
		l.read = time.Unix(0, d.signed())
	}
	return !d.bad && len(d.rest) == 0
}

// numbers reads numbers until one is bad.
type numbers struct {
	rest []byte
	bad  bool
}

func (d *numbers) unsigned() uint64 {
	v, n := binary.Uvarint(d.rest)
	return v * uint64(d.take(n))
}

func (d *numbers) signed() int64 {
	v, n := binary.Varint(d.rest)
	return v * int64(d.take(n))
}

// take steps over n bytes, and is zero where there is no number.
func (d *numbers) take(n int) int {
	if n <= 0 {
		d.bad, d.rest = true, nil
		return 0
	}
	d.rest = d.rest[n:]
	return 1
}

func (d *numbers) text() string {
	n := d.unsigned()
	if n > uint64(len(d.rest)) {
		d.bad = true
		return ""
	}
	s := string(d.rest[:n])
	d.rest = d.rest[n:]
	return s
}
