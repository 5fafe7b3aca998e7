package audit

import (
	"fmt"
	"net/url"

	"github.com/weirnet/weir/services/identity"
)

// checkNATS refuses to send the record in plain text beyond loopback.
func (c *Config) checkNATS() error {
	if c.NATS == nil {
		return nil
	}
	for _, server := range c.NATS.Servers {
		u, err := url.Parse(server)
		if err != nil || u.Host == "" || u.Scheme != "nats" && u.Scheme != "tls" {
			return fmt.Errorf("--nats %q: write nats://HOST:PORT or tls://HOST:PORT", server)
		}
		if u.Port() == "" {
			return fmt.Errorf("--nats %q: the port is missing", server)
		}
		if err := identity.CheckListen(u.Host, u.Scheme == "tls" || c.NATS.CA != "", c.Insecure); err != nil {
			return fmt.Errorf("--nats: %w", err)
		}
	}
	return nil
}
