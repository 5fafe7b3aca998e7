package engine

// pending is where something may differ from what the store was told, found
// out by Flush: it holds places, not changes. What has come back to where it
// was by then is not sent, and what has lost its last user and found another
// was never away. So nodes, target sets, groups, policies and Pods end in
// Flush, and not before.
//
// A scope that the store has not been told of is told as a whole, so nothing
// inside it is noted.
type pending struct {
	nodes    []*node
	sets     []*targetSet
	groups   []*group
	policies []*policy
	classes  []*class
	pods     []*pod
	services []*clusterService

	left    []podAt       // Nodes whose endpoint items are to go.
	members []groupMember // Of groups that were told.
	backers []groupMember // Of groups that Services have their backends from.
	hosts   []groupHost   // Of groups that were told.
	reaches []setNode     // Of sets that were told.
	spans   []groupNode   // Of groups that were told.
}

type (
	podAt struct {
		pod  *pod
		node *node
	}
	groupMember struct {
		group *group
		pod   *pod
	}
	groupHost struct {
		group *group
		node  *node
	}
	setNode struct {
		set  *targetSet
		node *node
	}
	groupNode struct {
		group *group
		node  *node
	}
)

// reset empties the lists. What is small is kept for the next Flush.
func (p *pending) reset() {
	*p = pending{
		nodes: emptied(p.nodes), sets: emptied(p.sets), groups: emptied(p.groups), policies: emptied(p.policies),
		classes: emptied(p.classes), pods: emptied(p.pods), left: emptied(p.left), members: emptied(p.members), hosts: emptied(p.hosts),
		reaches: emptied(p.reaches), spans: emptied(p.spans), services: emptied(p.services), backers: emptied(p.backers),
	}
}

func emptied[T any](s []T) []T {
	if cap(s) > 1024 {
		return nil
	}
	clear(s)
	return s[:0]
}
