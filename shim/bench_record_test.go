package shim

import (
	"context"
	"encoding/binary"
	"testing"
	"time"

	"github.com/weirnet/weir/shim/pipeline"
)

// BenchmarkRecord makes events of what an isolation reports, of a flow each, from the
// packet-in to what is sent to the collector.
func BenchmarkRecord(b *testing.B) {
	sw, w, objects := twoPods(b)
	s := newShim(b, sw, w, b.TempDir())
	s.loop.refreshPorts(context.Background())
	must(b, s.loop.apply(context.Background(), w.replica, w.cut(append(objects, deny("deny", "web"))...)).err)
	in := sw.Send(syn(1, 2)).PacketIns[0].PacketIn
	s.loop.hear()
	s.log.Flush(time.Now().Add(time.Hour))
	s.log.Take(10)
	b.ReportAllocs()
	events := 0
	for i := 0; b.Loop(); i++ {
		binary.BigEndian.PutUint16(in.Packet[34:], uint16(i)) // The source port.
		s.takeReport(in)
		if i%256 == 255 {
			s.loop.hear()
			s.log.Flush(time.Now().Add(time.Hour))
			events += len(s.log.Take(512))
		}
	}
	if events < b.N/256*256-256 || pipeline.MeterOf(in.UserData) == pipeline.LogMeter {
		b.Errorf("%d events of %d packet-ins", events, b.N)
	}
}
