package policy

import (
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

// Explain implements server.Model: the evaluator's answer on the live objects.
func (s *Service) Explain(req *policyv1.ExplainRequest) (*policyv1.ExplainResponse, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.evaluator.Answer(req)
}
