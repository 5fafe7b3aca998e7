package evaluate

import (
	"github.com/weirnet/weir/services/policy/api"
)

// Addressed are the names of all Nodes, Pods and Services, in no order.
func (s *State) Addressed() []api.Ref {
	out := make([]api.Ref, 0, len(s.nodes)+len(s.pods)+len(s.services))
	for name := range s.nodes {
		out = append(out, api.Ref{Kind: api.KindNode, Name: name})
	}
	for ref := range s.pods {
		out = append(out, ref)
	}
	for ref := range s.services {
		out = append(out, ref)
	}
	return out
}

// Object is the Node, Pod or Service of a name; nil where there is none.
func (s *State) Object(ref api.Ref) api.Object {
	switch ref.Kind {
	case api.KindNode:
		if o := s.nodes[ref.Name]; o != nil {
			return o
		}
	case api.KindPod:
		if o := s.pods[ref]; o != nil {
			return o
		}
	case api.KindService:
		if o := s.services[ref]; o != nil {
			return o
		}
	}
	return nil
}
