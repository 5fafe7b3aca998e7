package pipeline

import (
	"fmt"

	"github.com/weirnet/weir/shim/bridge"
)

// record is what a packet's reports meant when it was judged.
type record struct {
	walk  bridge.Walk
	means string
}

func recordOf(c *Compiler, w bridge.Walk) (record, error) {
	reports, err := reported(c, w)
	for i := range reports {
		reports[i].Priority = nil // Which its flow has now.
	}
	return record{w, fmt.Sprintf("%+v", reports)}, err
}

// unaltered says whether reports mean what they meant when their packets were
// judged.
func unaltered(c *Compiler, earlier []record) error {
	for _, r := range earlier {
		now, err := recordOf(c, r.walk)
		if err != nil {
			return err
		}
		if now.means != r.means {
			return fmt.Errorf("reports that meant %s mean %s", r.means, now.means)
		}
	}
	return nil
}
