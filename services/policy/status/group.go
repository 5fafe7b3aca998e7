package status

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/services/policy/api"
	"github.com/weirnet/weir/services/policy/api/antreav1beta1"
)

// Group is what is known of a ClusterGroup or Group.
type Group struct {
	Ref      api.Ref
	UID      string
	Computed bool // It is in force, and its members are known.
}

// typeComputed is the condition that the members of a group are known.
const typeComputed = "GroupMembersComputed"

// next is the status that a group is to have after a former one, which may be nil.
func (g *Group) next(former *antreav1beta1.GroupStatus, now time.Time) (*antreav1beta1.GroupStatus, urgency) {
	c := antreav1beta1.GroupCondition{Type: typeComputed, Status: corev1.ConditionStatus(truth(g.Computed)), LastTransitionTime: metav1.NewTime(now.Truncate(time.Second))}
	if former != nil && slices.ContainsFunc(former.Conditions, func(f antreav1beta1.GroupCondition) bool { return f.Type == c.Type && f.Status == c.Status }) {
		return former, nothing
	}
	return &antreav1beta1.GroupStatus{Conditions: []antreav1beta1.GroupCondition{c}}, truths
}
