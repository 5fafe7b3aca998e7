package audit

import (
	"errors"
	"fmt"

	"github.com/weirnet/weir/services/audit/sink"
	"github.com/weirnet/weir/services/identity"
)

// forwardSink names the cursor of the forwarder, to whichever collector: one that
// takes another's place goes on where that ended.
const forwardSink = "forward"

func (c *Config) checkForward() error {
	if len(c.Forward) == 0 {
		if c.ForwardTLS.Set() || c.ForwardEnroll != nil {
			return errors.New("credentials to forward with, and nowhere to: give --forward HOST:PORT")
		}
		return nil
	}
	if c.ForwardTLS.Set() && c.ForwardEnroll != nil {
		return errors.New("--forward-token-file gets the collector a certificate: leave --forward-cert and --forward-key out")
	}
	withTLS := c.ForwardTLS.Set() || c.ForwardEnroll != nil || c.TLS.Set() || c.Enroll != nil
	for _, address := range c.Forward {
		if err := identity.CheckListen(address, withTLS, c.Insecure); err != nil {
			return fmt.Errorf("--forward: %w", err)
		}
	}
	return nil
}

// credentials are those of files or by a token; nil for plain text.
func (s *Service) credentials(files identity.Files, enroll *identity.EnrolledConfig) (identity.Credentials, error) {
	switch {
	case enroll != nil:
		e, err := identity.NewEnrolled(*enroll)
		if err != nil {
			return nil, err
		}
		s.enrolled = append(s.enrolled, e)
		return e, nil
	case files.Set():
		return files.Credentials()
	}
	return nil, nil
}

// addForward makes the forwarder.
func (s *Service) addForward() error {
	c := &s.cfg
	if len(c.Forward) == 0 {
		return nil
	}
	creds, err := s.credentials(c.ForwardTLS, c.ForwardEnroll)
	if err != nil {
		return fmt.Errorf("--forward: %w", err)
	}
	if creds == nil {
		creds = s.own
	}
	s.forwarder = creds
	cfg := sink.ForwardConfig{Name: forwardSink, Log: s.log, Addresses: c.Forward, Node: c.Node, Logger: c.Logger.Named("sink")}
	if creds != nil {
		cfg.Credentials = creds.Client()
	}
	f, err := sink.NewForward(cfg)
	if err != nil {
		return err
	}
	s.sinks = append(s.sinks, f)
	return nil
}

// takes says whether the events of a node are taken. One that forwards as a node
// could not send on those of another, and would be held up by them.
func (c *Config) takes(node string) bool {
	return len(c.Forward) == 0 || c.Node == "" || c.Node == node
}
