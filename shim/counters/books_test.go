package counters

import (
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/pipeline"
)

// at is a moment some seconds after the epoch.
func at(seconds float64) Stamp {
	d := time.Duration(seconds * float64(time.Second))
	return Stamp{Wall: epoch.Add(d), Up: d, Boot: "one"}
}

// counted is the flow that counts the packets of an id, with what it counted, at
// an age in seconds.
func counted(id uint32, packets uint64, age float64) Flow {
	return FlowOf(openflow.Flow{Table: 13, Priority: uint16(id), Packets: packets, Bytes: 100 * packets, Age: time.Duration(age * float64(time.Second))},
		pipeline.Count{ID: id, Packets: true})
}

func reading(seconds float64, flows ...Flow) Reading {
	return Reading{Began: at(seconds), Ended: at(seconds), Flows: flows}
}

func begun(ids ...uint32) *Books {
	b := New("n", epoch)
	for _, id := range ids {
		b.Learn(Learned{ID: id, Subjects: []pipeline.Subject{subject(int(id))}})
	}
	return b
}

func (b *Books) packets(n int) uint64 {
	for _, l := range b.Changed(0) {
		if l.Subject == subject(n) {
			return l.Tally.Packets
		}
	}
	return 0
}

// seconds are the uncounted intervals.
func (b *Books) seconds() (out [][2]float64) {
	for _, i := range b.uncounted {
		out = append(out, [2]float64{i.From.Sub(epoch).Seconds(), i.To.Sub(epoch).Seconds()})
	}
	return out
}

func TestFlowsThatBeginAnew(t *testing.T) {
	for _, test := range []struct {
		name      string
		readings  []Reading
		packets   uint64
		uncounted [][2]float64
	}{
		{"it counts on", []Reading{reading(10, counted(1, 7, 10)), reading(20, counted(1, 9, 20))}, 9, nil},
		{"it is there before the books", []Reading{reading(10, counted(1, 7, 1000)), reading(20, counted(1, 9, 1010))}, 9, nil},
		{"it comes between readings", []Reading{reading(10), reading(20, counted(1, 9, 3))}, 9, nil},
		{"its counters went back", []Reading{reading(10, counted(1, 7, 10)), reading(20, counted(1, 3, 4))}, 10, [][2]float64{{10, 16}}},
		{"the switch takes something back", []Reading{reading(10, counted(1, 7, 10)), reading(20, counted(1, 5, 20)), reading(30, counted(1, 9, 30))}, 9, nil},
		{"its counters were set back", []Reading{reading(10, counted(1, 7, 10)), reading(20, counted(1, 3, 20))}, 10, [][2]float64{{10, 20}}},
		{"it has counted more by now", []Reading{reading(10, counted(1, 7, 10)), reading(20, counted(1, 30, 4))}, 37, [][2]float64{{10, 16}}},
		{"it is younger than it was", []Reading{reading(10, counted(1, 7, 10)), reading(10.05, counted(1, 30, 0.04))}, 37, [][2]float64{{10, 10.01}}},
		{"it is gone, and back", []Reading{reading(10, counted(1, 7, 10)), reading(20), reading(30, counted(1, 3, 4))}, 10, [][2]float64{{10, 20}}},
		{"it has gone as was to be", []Reading{
			{Began: at(10), Ended: at(10), Flows: []Flow{counted(1, 7, 10)}, Leaving: map[uint32]bool{1: true}}, reading(20)}, 7, nil},
		{"it was to go, and has stayed", []Reading{
			{Began: at(10), Ended: at(10), Flows: []Flow{counted(1, 7, 10)}, Leaving: map[uint32]bool{1: true}}, reading(20, counted(1, 9, 20)), reading(30)}, 9, [][2]float64{{20, 30}}},
		{"it was put in its own place", []Reading{
			{Began: at(10), Ended: at(10), Flows: []Flow{counted(1, 7, 10)}, Replacing: map[Key]bool{counted(1, 0, 0).Key: true}},
			reading(20, counted(1, 30, 4)), reading(30, counted(1, 33, 14))}, 33, nil},
		{"it was put in its own place, and then anew", []Reading{
			{Began: at(10), Ended: at(10), Flows: []Flow{counted(1, 7, 10)}, Replacing: map[Key]bool{counted(1, 0, 0).Key: true}},
			reading(20, counted(1, 30, 4)), reading(30, counted(1, 33, 3))}, 63, [][2]float64{{20, 27}}},
		{"the machine was started anew", []Reading{reading(10, counted(1, 7, 10)),
			{Began: Stamp{Wall: at(40).Wall, Up: at(35).Up, Boot: "two"}, Ended: Stamp{Wall: at(40).Wall, Up: at(35).Up, Boot: "two"}, Flows: []Flow{counted(1, 9, 25)}}}, 16, [][2]float64{{10, 15}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := begun(1)
			for _, r := range test.readings {
				b.Take(r)
				var err error
				if b, err = Decode(b.Encode(), "n"); err != nil { // Each by another shim.
					t.Fatal(err)
				}
				b.Learn(Learned{ID: 1, Subjects: []pipeline.Subject{subject(1)}})
			}
			if got := b.packets(1); got != test.packets {
				t.Errorf("%d packets, want %d", got, test.packets)
			}
			if got := b.seconds(); !reflect.DeepEqual(got, test.uncounted) {
				t.Errorf("uncounted: %v, want %v", got, test.uncounted)
			}
		})
	}
}

// A switch that restarts loses the counters of all flows: that is one interval.
func TestRestartIsOneInterval(t *testing.T) {
	b := begun(1, 2, 3)
	b.Take(reading(10, counted(1, 5, 10), counted(2, 5, 9), counted(3, 5, 8)))
	b.Take(reading(20, counted(1, 8, 4.2), counted(2, 5, 4.1), counted(3, 1, 4)))
	if got, want := b.seconds(), [][2]float64{{10, 16}}; !reflect.DeepEqual(got, want) || b.lost != 6*time.Second {
		t.Errorf("uncounted: %v, %v in all; want %v", got, b.lost, want)
	}
	if b.packets(1) != 13 || b.packets(2) != 10 || b.packets(3) != 6 {
		t.Errorf("packets %d, %d, %d", b.packets(1), b.packets(2), b.packets(3))
	}
}

// What flows counted for nobody knows whom is stated.
func TestUnknownIDIsUncounted(t *testing.T) {
	b := begun()
	b.Take(reading(10, counted(1, 0, 5)))
	b.Take(reading(20, counted(1, 3, 15)))
	if got, want := b.seconds(), [][2]float64{{10, 20}}; !reflect.DeepEqual(got, want) {
		t.Errorf("uncounted: %v, want %v", got, want)
	}
}

// Reports are of what changed after the reading that was reported last.
func TestReportsAreOfWhatChanged(t *testing.T) {
	b := begun(1, 2)
	b.Take(reading(10, counted(1, 5, 10), counted(2, 5, 9)))
	mark := b.Totals().Reading
	if lines := b.Changed(0); len(lines) != 2 {
		t.Errorf("first: %v", lines)
	}
	if b.Take(reading(20, counted(1, 5, 20), counted(2, 5, 19))) {
		t.Error("nothing was counted, and the books changed")
	}
	if lines := b.Changed(mark); len(lines) != 0 {
		t.Errorf("without packets: %v", lines)
	}
	if !b.Take(reading(30, counted(1, 5, 30), counted(2, 6, 29))) {
		t.Error("a packet was counted, and the books did not change")
	}
	if lines := b.Changed(mark); len(lines) != 1 || lines[0] != (Line{subject(2), Tally{Packets: 6, Bytes: 600}}) {
		t.Errorf("with one: %v", lines)
	}
}

// A policy that leaves the node and comes back goes on from its tally; one that
// is gone for a month, or longer than many others, is forgotten.
func TestWhatLeftIsKeptForATime(t *testing.T) {
	gone := func(b *Books, id uint32, seconds float64) {
		b.Take(Reading{Began: at(seconds), Ended: at(seconds), Flows: []Flow{counted(id, 5, 10)}, Leaving: map[uint32]bool{id: true}})
		b.Take(reading(seconds + 1))
	}
	b := begun(1)
	gone(b, 1, 10)
	if len(b.ids) != 0 || b.packets(1) != 5 {
		t.Fatalf("gone: %d ids, %d packets", len(b.ids), b.packets(1))
	}
	b.Learn(Learned{ID: 2, Subjects: []pipeline.Subject{subject(1)}})
	b.Take(reading(20, counted(2, 7, 5)))
	if b.packets(1) != 12 {
		t.Errorf("back: %d packets, want 12", b.packets(1))
	}
	gone(b, 2, 30)
	if b.Highest() != 2 {
		t.Errorf("%d was the highest id", b.Highest())
	}
	had := b.packets(1)
	month := keepGone.Seconds()
	if b.Take(reading(month)); b.packets(1) != had {
		t.Error("forgotten within the month")
	}
	if b.Take(reading(month + 60)); b.packets(1) != 0 {
		t.Error("kept for longer than a month")
	}
	b = begun()
	for i := range maxGone + 5 {
		b.subjects[subject(i)] = &account{subject: subject(i), tally: Tally{Packets: 1}, changed: 1, left: at(float64(i)).Wall}
	}
	b.Take(reading(month / 2))
	if len(b.subjects) != maxGone || b.packets(4) != 0 || b.packets(5) != 1 {
		t.Errorf("%d subjects are kept, the fifth with %d packets", len(b.subjects), b.packets(4))
	}
}

// What the switch takes back from an heir's time is not taken below zero.
func TestNothingIsTakenBelowZero(t *testing.T) {
	b := begun(1)
	b.Take(reading(10, counted(1, 100, 10)))
	b.Learn(Learned{ID: 1, Subjects: []pipeline.Subject{subject(2)}})
	b.Take(reading(20, counted(1, 101, 20)))
	b.Take(reading(30, counted(1, 95, 30)))
	if b.packets(1) != 100 || b.packets(2) != 0 || b.lost != 0 {
		t.Errorf("%d and %d packets, %v uncounted", b.packets(1), b.packets(2), b.lost)
	}
}

// A reading of some flows says nothing of the others, and a flow that it finds new
// is the same in the next reading of all.
func TestPartsAreRead(t *testing.T) {
	b := begun(1, 2)
	b.Take(reading(10, counted(1, 5, 10)))
	b.TakePart(reading(15, counted(2, 3, 1)))
	b, err := Decode(b.Encode(), "n")
	if err != nil {
		t.Fatal(err)
	}
	b.Take(reading(20, counted(1, 6, 20), counted(2, 7, 6)))
	if b.packets(1) != 6 || b.packets(2) != 7 || b.lost != 0 {
		t.Errorf("%d and %d packets, %v uncounted", b.packets(1), b.packets(2), b.lost)
	}
}

func TestIdsWithoutFlowsAreForgotten(t *testing.T) {
	b := begun(1, 2, 3)
	b.Take(reading(10, counted(1, 5, 10)))
	b.Learn(Learned{ID: 4, Subjects: []pipeline.Subject{subject(4)}})
	b.Keep(func(id uint32) bool { return id == 2 }, at(11))
	var left []uint32
	for id := range b.Known() {
		left = append(left, id)
	}
	slices.Sort(left)
	if !slices.Equal(left, []uint32{1, 2, 4}) { // The third is of before the first reading, so not of this boot.
		t.Errorf("%v are known", left)
	}
	if b.Keep(func(uint32) bool { return false }, at(11+keepUnused.Seconds())); len(b.Known()) != 1 {
		t.Errorf("%v are known", b.Known())
	}
}

// How long an id has been quiet is known over restarts.
func TestQuiet(t *testing.T) {
	b := begun(1)
	b.Take(reading(10, counted(1, 5, 10)))
	b.Take(reading(70, counted(1, 5, 70)))
	b, err := Decode(b.Encode(), "n")
	if err != nil {
		t.Fatal(err)
	}
	if quiet, carried, known := b.Quiet(1, at(100)); !known || carried || quiet != 90*time.Second {
		t.Errorf("quiet for %v, %v", quiet, known)
	}
	b.Take(reading(110, counted(1, 6, 110)))
	if quiet, _, known := b.Quiet(1, at(110)); !known || quiet != 0 {
		t.Errorf("quiet for %v, %v", quiet, known)
	}
	if _, _, known := b.Quiet(2, at(110)); known {
		t.Error("of an id that is not there it is known")
	}
}

func TestBooksReadBack(t *testing.T) {
	b := begun(1, 2)
	b.Learn(Learned{ID: 9, Subjects: []pipeline.Subject{{Namespace: "x", Name: "a", Isolation: true}, {Namespace: "x", Name: "b", Rule: "r", Isolation: true}}})
	b.Take(reading(10, counted(1, 5, 10), counted(2, 5, 9), counted(9, 1, 1)))
	b.Take(reading(20, counted(1, 8, 4.2), counted(9, 7, 11)))
	whole := b.Encode()
	got, err := Decode(whole, "n")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range b.flows {
		f.seen = 0 // Of the process alone.
	}
	if !reflect.DeepEqual(got.Changed(0), b.Changed(0)) || !reflect.DeepEqual(got.Known(), b.Known()) || !reflect.DeepEqual(got.seconds(), b.seconds()) || !reflect.DeepEqual(got.flows, b.flows) || got.highest != 9 {
		t.Errorf("%+v\nread back as\n%+v", b, got)
	}
	if _, err := Decode(whole, "m"); !errors.Is(err, ErrNode) {
		t.Errorf("of another node: %v", err)
	}
	for n := range whole {
		if _, err := Decode(whole[:n], "n"); err == nil {
			t.Fatalf("cut at %d of %d, and taken", n, len(whole))
		}
	}
	if _, err := Decode(append(whole, 0), "n"); err == nil {
		t.Error("too long, and taken")
	}
}

func TestJournalReadsBackToWhereItIsTorn(t *testing.T) {
	list := []Learned{{ID: 1, Subjects: []pipeline.Subject{subject(1)}}, {ID: 7, Subjects: []pipeline.Subject{subject(2), subject(3)}}}
	var journal []byte
	var ends []int
	for _, l := range list {
		journal = AppendLearned(journal, l)
		ends = append(ends, len(journal))
	}
	for n := range len(journal) + 1 {
		want := 0
		for _, end := range ends {
			if n >= end {
				want++
			}
		}
		end := 0
		if want > 0 {
			end = ends[want-1]
		}
		if got, length := ReadLearned(journal[:n]); length != end || !reflect.DeepEqual(got, list[:want:want]) && len(got)+want > 0 {
			t.Fatalf("torn at %d: %v, of %d bytes", n, got, length)
		}
	}
	journal[ends[0]+15] ^= 1
	if got, _ := ReadLearned(journal); len(got) != 1 {
		t.Errorf("altered: %v", got)
	}
}

// BenchmarkTake enters a reading of the flows of 10,000 rules, a tenth of which
// have counted, and writes the books.
func BenchmarkTake(b *testing.B) {
	books := New("n", epoch)
	r := Reading{}
	for id := range uint32(10000) {
		books.Learn(Learned{ID: id, Subjects: []pipeline.Subject{subject(int(id))}})
		for i := range uint8(4) {
			match := openflow.NewMatch(openflow.Masked(openflow.FieldCTLabel, openflow.Uint(uint64(id)), openflow.Ones(0, 32)))
			r.Flows = append(r.Flows, FlowOf(openflow.Flow{Table: 13 + i, Match: match}, pipeline.Count{ID: id, Packets: true}))
		}
	}
	n := 0.0
	for b.Loop() {
		n++
		r.Began, r.Ended = at(10*n), at(10*n)
		for i := range r.Flows {
			r.Flows[i].Age = at(10 * n).Up
			if i%10 == 0 {
				r.Flows[i].Packets++
			}
		}
		if !books.Take(r) || len(books.Encode()) == 0 || books.lost != 0 {
			b.Fatal("nothing changed")
		}
	}
	b.ReportMetric(float64(len(books.Encode())), "B")
}
