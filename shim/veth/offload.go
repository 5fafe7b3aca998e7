package veth

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethtoolValue is struct ethtool_value of the kernel.
type ethtoolValue struct {
	command, data uint32
}

// ifreq is struct ifreq, as the ethtool call takes it.
type ifreq struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [16]byte
}

// stopChecksumOffload has the kernel fill in the checksums of what it sends by
// the device. Segmentation offload goes with it.
func stopChecksumOffload(device string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("checksum offload of %s: %w", device, err)
	}
	defer unix.Close(fd)
	if len(device) >= unix.IFNAMSIZ {
		return fmt.Errorf("checksum offload of %s: the name is too long", device)
	}
	value := ethtoolValue{command: unix.ETHTOOL_STXCSUM}
	req := ifreq{data: unsafe.Pointer(&value)}
	copy(req.name[:], device)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 && !errors.Is(errno, unix.EOPNOTSUPP) {
		return fmt.Errorf("checksum offload of %s: %w", device, errno)
	}
	return nil
}
