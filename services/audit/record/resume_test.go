package record

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestResume: whoever goes on from what was saved writes the same lines as who
// was never interrupted, overflow and clocks that go back included.
func TestResume(t *testing.T) {
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		cfg := DedupConfig{MaxWindows: 4}
		whole, parts := newScenario(cfg), newScenario(cfg)
		var records []Record
		ms := 0
		for i := range 400 {
			if ms += rnd.IntN(300); rnd.IntN(50) == 0 {
				ms -= rnd.IntN(8000)
			}
			p := isolation()
			p.First = time.Unix(1_700_000_000, 0).Add(time.Duration(ms) * time.Millisecond)
			p.Last = p.First.Add(time.Duration(rnd.IntN(100)) * time.Millisecond)
			p.Count = 1 + uint64(rnd.IntN(3))
			p.SourcePort = num(uint32(rnd.IntN(8)))
			records = append(records, Record{Cursor: uint64(i + 1), Node: []string{"n1", "n2"}[rnd.IntN(2)], Event: Event{Packet: p}})
		}
		for i := range records {
			whole.Add(&records[i], whole.wall)
			parts.Add(&records[i], parts.wall)
			if rnd.IntN(10) == 0 {
				saved := parts.Save(nil)
				parts.Dedup = NewDedup(parts.cfg)
				for _, s := range saved {
					parts.Resume(&records[s.Cursor-1], s, parts.wall)
				}
			}
		}
		whole.Flush()
		parts.Flush()
		parts.want(t, whole.lines...)
	}
}
