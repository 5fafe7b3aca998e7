package harness

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// RoomySwitch gives the sockets by which a userspace datapath reads its ports
// room for some seconds of traffic. As they are they hold a hundredth of one, and
// lose packets whenever a busy machine does not let the switch run for so long.
func (n *Node) RoomySwitch() error {
	text, err := os.ReadFile(filepath.Join(n.OVS.Dir, "ovs-vswitchd.pid"))
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(process)
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return err
	}
	found := 0
	for _, e := range entries {
		number, err := strconv.Atoi(e.Name())
		if err != nil {
			return err
		}
		fd, err := unix.PidfdGetfd(process, number, 0)
		if err != nil {
			continue // Closed meanwhile.
		}
		if family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err == nil && family == unix.AF_PACKET {
			found++
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
			if err != nil {
				return errors.Join(err, unix.Close(fd))
			}
		}
		unix.Close(fd)
	}
	if found == 0 {
		return errors.New("the switch has no packet socket")
	}
	return nil
}
