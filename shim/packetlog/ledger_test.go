package packetlog

import (
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
)

// ledgerLife is one life of a reporter, as the ledger sees it.
type ledgerLife struct {
	*Ledger
	sent []logged
}

// nextLife opens the ledger, and settles it with what the collector has.
func nextLife(t *testing.T, path, boot string, arrived uint64) *ledgerLife {
	t.Helper()
	l := NewLedger(path, "machine", hclog.NewNullLogger())
	l.Open()
	l.settle(arrived, boot)
	return &ledgerLife{Ledger: l}
}

// balances leaves out accounts of nothing.
func balances(of map[uint32]Account) map[uint32]Account {
	out := maps.Clone(of)
	maps.DeleteFunc(out, func(_ uint32, a Account) bool { return a == Account{} })
	return out
}

// Over random lives, whatever of what was sent has arrived, the next life's accounts
// are what the collector has, to the packet, also where the file's end is torn.
func TestLedgerIsWhatArrived(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	path := filepath.Join(t.TempDir(), "reported")
	want := make(map[uint32]Account)
	arrived := uint64(0)
	for life := range 200 {
		l := nextLife(t, path, string(rune('a'+life%26)), arrived)
		if got := balances(l.Formers()); !maps.Equal(got, balances(want)) {
			t.Fatalf("life %d: accounts %v, want %v", life, got, want)
		}
		acked := uint64(0)
		for range r.IntN(30) {
			switch r.IntN(4) {
			case 0:
				id := uint32(r.IntN(4))
				a := Account{Born: time.Duration(r.IntN(9)) * time.Minute, Base: int64(r.IntN(50)) - 20, OverRate: int64(r.IntN(9))}
				l.Begin(id, a)
				for _, e := range l.sent { // What this life records counts from the base on.
					for _, s := range e.shares {
						if s.class == id {
							a.add(s)
						}
					}
				}
				want[id] = a
			case 1:
				l.ack(acked)
			default:
				events := make([]logged, 1+r.IntN(5))
				for i := range events {
					for range r.IntN(3) {
						events[i].shares = append(events[i].shares, share{uint32(r.IntN(4)), r.IntN(3) == 0, uint64(r.IntN(100))})
					}
				}
				l.send(events)
				l.sent = append(l.sent, events...)
				for _, e := range events {
					for _, s := range e.shares {
						a := want[s.class]
						a.add(s)
						want[s.class] = a
					}
				}
				acked += uint64(r.IntN(len(l.sent) - int(acked) + 1))
			}
		}
		if r.IntN(3) == 0 { // What is being written when it dies was not sent.
			f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			whole := l.appendShares(nil, [][]share{{{1, false, 99}}})
			if _, err := f.Write(whole[:r.IntN(len(whole))]); err != nil {
				t.Fatal(err)
			}
			f.Close()
		}
		// Of what was not acknowledged a part has arrived.
		arrived = acked + uint64(r.IntN(len(l.sent)-int(acked)+1))
		for _, e := range l.sent[arrived:] {
			for _, s := range e.shares {
				a := want[s.class]
				s.count = -s.count
				a.add(s)
				want[s.class] = a
			}
		}
	}
}

// What comes of a meter's number once it was discarded is of another meter, and what
// has not arrived says that it may not be discarded yet.
func TestLedgerOfAMeterInTheOthersPlace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "reported")
	l := nextLife(t, path, "a", 0)
	l.Begin(7, Account{Born: time.Minute, Base: 5})
	l.send([]logged{{shares: []share{{8, false, 1}, {7, false, 3}}}, {shares: []share{{9, true, 1}}}})
	for id, want := range map[uint32]bool{7: true, 8: true, 9: true, 10: false} {
		if got := l.Awaits(id); got != want {
			t.Errorf("awaits something of %d: %t", id, got)
		}
	}
	l.ack(1)
	if l.Awaits(7) || !l.Awaits(9) {
		t.Error("what arrived is awaited, or what did not is not")
	}
	l.ack(2)
	l.Discard([]uint32{7})
	l.send([]logged{{shares: []share{{7, false, 4}}}})
	l = nextLife(t, path, "b", 3)
	if got, want := l.Formers()[7], (Account{Born: time.Minute, Base: 4, Discarded: true}); got != want {
		t.Errorf("the account is %+v, want %+v", got, want)
	}
}

// The next life knows when meters were read last, whether its own life read any or
// not, and over a file that is written anew.
func TestLedgerKnowsTheLastReading(t *testing.T) {
	path := filepath.Join(t.TempDir(), "reported")
	l := nextLife(t, path, "a", 0)
	for i := range 3 {
		l.Read(time.Unix(int64(1000+i), 5))
	}
	for range 2 {
		l = nextLife(t, path, "b", 0)
		if want := time.Unix(1002, 5); !l.Since().Equal(want) {
			t.Errorf("meters were read at %s, want %s", l.Since(), want)
		}
	}
}

// A ledger of another start of the machine knows no meter; one that is damaged, or
// cannot be written, is none.
func TestLedgerThatSaysNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "reported")
	l := nextLife(t, path, "a", 0)
	l.Begin(7, Account{Born: time.Minute, Base: 5})
	l.send([]logged{{shares: []share{{7, false, 2}}}})

	other := NewLedger(path, "another", hclog.NewNullLogger())
	other.Open()
	other.settle(1, "b")
	if a := other.Formers()[7]; SameMeter(a.Born, time.Minute) || a.Base != 7 || other.Since().IsZero() {
		t.Errorf("on another start: %+v", a)
	}

	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	content[len(content)/2] ^= 1
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if l := nextLife(t, path, "c", 0); len(l.Formers()) > 0 || !l.Since().IsZero() {
		t.Errorf("damaged: %v", l.Formers())
	}

	l = nextLife(t, path, "d", 0)
	l.file.Close() // Whatever keeps it from being written.
	l.send([]logged{{shares: []share{{7, false, 2}}}})
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("a file that lacks something is left: %v", err)
	}
	l.send([]logged{{shares: []share{{7, false, 3}}}})
	if l := nextLife(t, path, "e", 2); l.Formers()[7].Base != 5 {
		t.Errorf("written again: %v", l.Formers())
	}
}

// It does not grow with what was sent.
func TestLedgerStaysShort(t *testing.T) {
	path := filepath.Join(t.TempDir(), "reported")
	l := nextLife(t, path, "a", 0)
	batch := make([]logged, batchEvents)
	for i := range batch {
		batch[i].shares = []share{{uint32(i), false, 1 << 20}}
	}
	for i := range uint64(2000) {
		l.send(batch)
		l.ack((i + 1) * batchEvents)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > ledgerMost+1<<16 {
		t.Errorf("%d bytes", info.Size())
	}
	if next := nextLife(t, path, "b", 2000*batchEvents); next.Formers()[3].Base != 2000<<20 {
		t.Errorf("account %+v", next.Formers()[3])
	}
}

// What a former shim left of a meter is missing, less what its account has; what is
// under way is not. Counters that went back are stated as not known.
func TestLossesOfAFormerLife(t *testing.T) {
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	born := time.Minute
	var l Losses
	l.Resume(at(0), Account{Born: born, Base: 40, OverRate: 10})
	got := make(map[auditv1.LossStage]uint64)
	for i, r := range []Reading{{Metered: 100, Limited: 15, Received: 20}, {Metered: 110, Limited: 15, Received: 40}, {Metered: 110, Limited: 15, Received: 40}, {Metered: 110, Limited: 15, Received: 40}} {
		r.Time, r.Born = at(10+i), born+time.Duration(i)
		for _, e := range l.Next(r) {
			got[e.GetStage()] += e.GetCount()
			if !e.GetFrom().AsTime().Equal(at(0)) && i < settle {
				t.Errorf("the loss is %v", e)
			}
		}
	}
	if want := map[auditv1.LossStage]uint64{auditv1.LossStage_LOSS_STAGE_METER: 5, auditv1.LossStage_LOSS_STAGE_QUEUE: 15}; !maps.Equal(got, want) {
		t.Errorf("losses %v, want %v", got, want)
	}
	if a := l.Account(); a.Base != 40 || a.OverRate != 10 {
		t.Errorf("account %+v", a)
	}
	// Another switch, which counted more than the one before in no time.
	next := l.Next(Reading{Time: at(20), Born: 2 * born, Metered: 200, Received: 90, Before: 41})
	if len(next) != 1 || next[0].GetStage() != auditv1.LossStage_LOSS_STAGE_UNKNOWN {
		t.Errorf("of another switch: %v", next)
	}
	lost := uint64(0)
	for i := range settle {
		for _, e := range l.Next(Reading{Time: at(21 + i), Born: 2 * born, Metered: 200, Received: 200, Before: 41}) {
			lost += e.GetCount()
		}
	}
	// 159 of 200 have arrived of this switch. The account begins with what was stated less.
	if a := l.Account(); lost != 41 || a.Base != -41-15 || a.OverRate != -5 {
		t.Errorf("%d lost, account %+v", lost, a)
	}
	var back Losses
	back.Resume(at(0), Account{Born: born, Base: 40})
	if got := back.Next(Reading{Time: at(1), Born: born, Metered: 30}); len(got) != 1 || got[0].GetStage() != auditv1.LossStage_LOSS_STAGE_UNKNOWN {
		t.Errorf("counters went back: %v", got)
	}
}
