package igmp

import "time"

// MessagesASecond is how many messages of a port are read in a second.
const MessagesASecond = 32

// Budget says whose messages are still to be read in the present second. The zero
// value has read none.
type Budget struct {
	second int64
	spent  map[uint32]int
}

// Take takes a message of a port in, if the port has not said too much.
func (b *Budget) Take(now time.Time, port uint32) bool {
	if second := now.Unix(); b.spent == nil || b.second != second {
		b.second, b.spent = second, make(map[uint32]int)
	}
	b.spent[port]++
	return b.spent[port] <= MessagesASecond
}
