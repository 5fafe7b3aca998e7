package packetlog

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// The queue does what a plain list does, of which all is looked through.
func TestFairIsAQueueThatShedsTheLongest(t *testing.T) {
	type value struct {
		class uint32
		n     int
	}
	rng := rand.New(rand.NewPCG(1, 2))
	f := newFair[value]()
	var list []value
	length := func(class uint32) (n int) {
		for _, v := range list {
			if v.class == class {
				n++
			}
		}
		return n
	}
	for i := range 20000 {
		switch k := rng.IntN(10); {
		case k < 5:
			v := value{uint32(rng.IntN(1 + rng.IntN(6))), i}
			f.push(v.class, v)
			list = append(list, v)
		case k < 8:
			class, v, ok := f.pop()
			if ok != (len(list) > 0) || ok && (v != list[0] || class != v.class) {
				t.Fatalf("step %d: popped %v, %v of %v", i, v, ok, list)
			}
			if ok {
				list = list[1:]
			}
		default:
			class, v, ok := f.shed()
			if ok != (len(list) > 0) {
				t.Fatalf("step %d: shed %v of %v", i, ok, list)
			}
			if !ok {
				continue
			}
			for _, other := range list {
				if length(other.class) > length(class) {
					t.Fatalf("step %d: shed of class %d, not of %d: %v", i, class, other.class, list)
				}
			}
			at := slices.IndexFunc(list, func(o value) bool { return o.class == class })
			if v != list[at] {
				t.Fatalf("step %d: shed %v, not the oldest of its class %v", i, v, list[at])
			}
			list = slices.Delete(list, at, at+1)
		}
		if f.n != len(list) {
			t.Fatalf("step %d: %d wait, not %d", i, f.n, len(list))
		}
	}
}

func BenchmarkFair(b *testing.B) {
	f := newFair[int]()
	for i := range 1 << 16 {
		f.push(uint32(i%1024), i)
	}
	b.ReportAllocs()
	for i := range b.N {
		f.push(uint32(i%1024), i)
		f.shed()
	}
}

// However much comes of one rule, and of how many, a rule that wants less than
// its share of the rate gets all of it, at once; what is lost is counted.
func TestIntakeIsFair(t *testing.T) {
	for _, floods := range []int{1, 5, 40} {
		t.Run(fmt.Sprintf("%d floods", floods), func(t *testing.T) {
			const rate, modest = 1000, 10 // A second.
			in := NewIntake[uint32](rate, rate)
			got := make(map[uint32]uint64)
			late := time.Duration(0)
			now := start
			take := func() {
				in.Take(now, intakeMost, func(at time.Time, class uint32) {
					got[class]++
					if class == 0 {
						late = max(late, now.Sub(at))
					}
				})
			}
			came := make(map[uint32]uint64)
			put := func(class uint32) { came[class]++; in.Put(now, class, class) }
			const seconds = 20
			for ms := range seconds * 1000 {
				now = start.Add(time.Duration(ms) * time.Millisecond)
				for i := range 20 { // 20,000 a second.
					put(uint32(1 + (ms*20+i)%floods))
				}
				if ms%(1000/modest) == 0 {
					put(0)
				}
				if ms%25 == 0 {
					take()
				}
			}
			if got[0] < modest*seconds-intakeMost/rate || late > 2*intakeWaits {
				t.Errorf("%d records of the modest rule, of %d, at most %v late", got[0], came[0], late)
			}
			total := uint64(0)
			for range 2 {
				now = now.Add(time.Minute)
				take() // What still waits.
			}
			lost := in.TakeLost()
			for class, n := range came {
				total += got[class]
				if l := lost[class]; got[class]+l.OverRate+l.Dropped != n || in.Came()[class] != n {
					t.Errorf("class %d: %d taken and %+v lost of %d; %d counted", class, got[class], l, n, in.Came()[class])
				}
				if class != 0 && (got[class]*uint64(floods) < rate*seconds*8/10 || lost[class].OverRate == 0) {
					t.Errorf("class %d has %d of %d", class, got[class], rate*seconds)
				}
			}
			if total > rate*(seconds+1)+intakeMost {
				t.Errorf("%d records in %d seconds", total, seconds)
			}
		})
	}
}

// While nobody takes, as in a long bundle, what does not fit goes from the flood.
func TestIntakeOverflowsFairly(t *testing.T) {
	in := NewIntake[int](1000, 1000)
	for i := range 10 * intakeMost {
		in.Put(start, 1, i)
		if i%1000 == 0 {
			in.Put(start, 2, i)
		}
	}
	in.Spoil(2)
	got := map[bool]int{}
	in.TakeAll(start, func(_ time.Time, i int) { got[i%1000 == 0]++ })
	lost := in.TakeLost()
	if n := uint64(10 * intakeMost); lost[2] != (IntakeLoss{Dropped: 1}) || lost[1].Dropped+intakeMost-82 != n || lost[1].OverRate != 0 || in.Came()[2] != 83 {
		t.Errorf("lost %+v, %d of the second came", lost, in.Came()[2])
	}
	in.Put(start, 1, 1)
	in.Take(start.Add(time.Nanosecond), 1, func(time.Time, int) { t.Error("what was taken at once is not made up for") })
	if again := in.TakeLost(); len(again) != 0 {
		t.Errorf("stated again: %v", again)
	}
}

// While there is no collector, a flood keeps no other rule's records out, and what
// is lost is stated by rule, as few events, however often it is.
func TestFullLogIsFairAndNamesWhoLost(t *testing.T) {
	l := NewLog(100)
	rule := func(name string) func() (Meaning, bool) {
		return func() (Meaning, bool) {
			return Meaning{Direction: policyv1.Direction_DIRECTION_INGRESS, Rule: name, Policies: []*policyv1.PolicyRef{{Name: "p-" + name}}}, true
		}
	}
	for i := range 5000 {
		now := start.Add(time.Duration(i) * time.Second)
		l.Add(now, Key{Class: 1, Cookie: uint64(i)}, packet(1), rule("flood"))
		if i%250 == 0 {
			l.Add(now, Key{Class: 2, Cookie: uint64(i)}, packet(2), rule("modest"))
		}
		l.Flush(now.Add(Window))
		l.Lose(&auditv1.LossEvent{From: nil, Count: 2, Stage: auditv1.LossStage_LOSS_STAGE_RULE_METER, Rule: "flood"})
	}
	kept := map[string]int{}
	lost := map[string]uint64{}
	for _, e := range l.Take(1000) {
		if p := e.GetPacket(); p != nil {
			kept[p.GetRule()]++
			continue
		}
		key := e.GetLoss().GetStage().String() + " " + e.GetLoss().GetPolicy().GetName() + " " + e.GetLoss().GetRule()
		if _, twice := lost[key]; twice {
			t.Errorf("%s is stated twice", key)
		}
		lost[key] = e.GetLoss().GetCount()
	}
	if kept["modest"] != 20 || kept["flood"] != 80 || len(lost) != 2 || lost["LOSS_STAGE_QUEUE p-flood flood"] != 4920 || lost["LOSS_STAGE_RULE_METER  flood"] != 10000 {
		t.Errorf("kept %v, lost %v", kept, lost)
	}
}
