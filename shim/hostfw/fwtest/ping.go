package fwtest

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"syscall"
	"time"
)

// Ping sends an echo request from an address of the clients, and says what became
// of it.
func (n *Network) Ping(from, to, expected string) string { return ping(n.clients, from, to, expected) }

// PingFromHost sends one from the host.
func (n *Network) PingFromHost(to, expected string) string { return ping(n.host, "", to, expected) }

func ping(s space, from, to, expected string) string {
	wait := patience
	if expected == Silence {
		wait = silence
	}
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if net.ParseIP(to).To4() == nil {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	return outcome(s.do(func() error {
		d := net.Dialer{Timeout: wait}
		if from != "" {
			d.LocalAddr = &net.IPAddr{IP: net.ParseIP(from)}
		}
		c, err := d.Dial(network, to)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(wait))
		if _, err := c.Write(echoRequest(request)); err != nil && !errors.Is(err, syscall.EPERM) { // An answer may come with that.
			return err
		}
		for b := make([]byte, 1500); ; {
			k, err := c.Read(b)
			if err != nil {
				return err
			}
			m := b[:k]
			if k > 0 && m[0]>>4 == 4 { // An IPv4 header comes with it.
				m = m[min(k, int(m[0]&0xf)*4):]
			}
			if len(m) > 0 && m[0] == reply {
				return nil
			}
		}
	}))
}

// echoRequest is one with its checksum, which the kernel makes anew for IPv6.
func echoRequest(kind byte) []byte {
	id := rand.Uint32() // Or a former one's connection would be known still.
	m := []byte{kind, 0, 0, 0, byte(id >> 8), byte(id), 0, 1, 'w', 'e', 'i', 'r'}
	var sum uint32
	for i := 0; i < len(m); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(m[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(m[2:], ^uint16(sum))
	return m
}
