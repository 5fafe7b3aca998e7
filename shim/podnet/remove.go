package podnet

import (
	"errors"
	"fmt"

	"github.com/hashicorp/go-hclog"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Remove takes away what a Network made: routes, the VXLAN device, and the
// gateways on the bridge's device. Pods of different nodes do not reach each other
// after it. That nothing is there is no error; that the host forwards stays, since
// others may have come to need it.
func Remove(bridge string) error {
	k := kernel{cfg: &Config{Bridge: bridge, Logger: hclog.NewNullLogger()}}
	errs := []error{k.routes(&plan{}, nil)}
	_, err := k.device(&plan{})
	errs = append(errs, err)
	link, err := netlink.LinkByName(bridge)
	switch {
	case err == nil:
		errs = append(errs, k.removeFormer(link, &plan{}))
	case !errors.As(err, new(netlink.LinkNotFoundError)) && !errors.Is(err, unix.ENODEV):
		errs = append(errs, fmt.Errorf("find bridge %s: %w", bridge, err))
	}
	return errors.Join(errs...)
}
