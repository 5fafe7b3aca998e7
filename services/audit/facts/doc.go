// Package facts remembers whose addresses were, and which versions policies had,
// so that a packet can be told by names as of its time.
//
//	policy service ══WatchChanges══► Apply ─► spans by address, Service address, policy
//	packet of a node ─► AppendContext ─► an encoded PacketContext, which is stored with the event
//
// An address has an owner for a span of time. Spans that ended are kept for a
// while (Config.Keep), since events may come late: from a node's spool, or after
// the collector was away. What no span covers is not known, and not guessed: an
// address that a Pod had yesterday says nothing about who has it now. Only
// within Config.Slack, by which clocks may differ, the span nearest in time
// counts, where no other owner is in question.
//
// A snapshot begins with Begin and ends with Complete: what was not told in
// between is gone. So a stream that broke is begun anew without forgetting.
//
// It is pure but for its lock: time comes with what is told. Read facts_test.go
// first.
package facts
