package harness

import "context"

// AddGateway gives the bridge's own port the addresses by which Pods know their gateway,
// as whoever set the node up does; they go with the port.
func (n *Node) AddGateway(ctx context.Context) error { return n.gateway(ctx) }
