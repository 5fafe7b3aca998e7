package policy

import (
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
	"github.com/weirnet/weir/services/policy/server"
)

// Explain implements server.Model: the evaluator's answer on the live objects.
func (s *Service) Explain(req *policyv1.ExplainRequest, sees func(namespace string) bool) (*policyv1.ExplainResponse, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if sees != nil {
		return s.evaluator.AnswerTo(req, sees)
	}
	return s.evaluator.Answer(req)
}

// Ends implements server.Model.
func (s *Service) Ends(req *policyv1.ExplainRequest) (from, to server.End, err error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	a, b, err := s.evaluator.Ends(req)
	return server.End(a), server.End(b), err
}
