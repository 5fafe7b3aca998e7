package shim

import (
	"context"

	"github.com/weirnet/weir/shim/bridge/openflow"
	"github.com/weirnet/weir/shim/pipeline"
	"github.com/weirnet/weir/shim/reject"
)

// What becomes of the answers to rejected packets: values of a metric's label.
const (
	answerSent     = "sent"
	answerNone     = "none"      // The packet is of those that are never answered.
	answerOverRate = "over-rate" // The meter let no more through.
	answerLost     = "lost"
)

// answer answers the packets that Reject rules drop, until the context ends. It
// has a goroutine, a connection and a meter of its own: it waits for nothing that
// the event loop does, nor for the log, and neither waits for it.
func (s *Shim) answer(ctx context.Context) error {
	rejected := s.bridge.PacketIns(pipeline.RejectController)
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case p := <-rejected:
			s.metrics.rejected.WithLabelValues(s.answerTo(ctx, &p)).Inc()
		}
	}
}

// answerTo answers one packet and says what became of that.
func (s *Shim) answerTo(ctx context.Context, p *openflow.PacketIn) string {
	asked := pipeline.AskedFor(p.Metadata)
	frame, err := reject.Answer(p.Packet, asked)
	if pipeline.Unserviced(p.UserData) {
		frame, err = reject.Refuse(p.Packet)
	}
	if err != nil {
		return answerNone
	}
	frames := [][]byte{frame}
	if !asked.IsValid() && pipeline.FromElsewhere(p.Metadata) {
		if abort, err := reject.Abort(p.Packet); err == nil {
			frames = append(frames, abort)
		}
	}
	for _, frame := range frames {
		if err := s.bridge.PacketOut(ctx, openflow.PacketOut{Actions: pipeline.Answers(), Packet: frame}); err != nil {
			return answerLost
		}
	}
	return answerSent
}
