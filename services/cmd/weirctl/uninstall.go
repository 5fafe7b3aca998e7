package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/weirnet/weir/services/policy/api"
)

const (
	shimDaemonSet = "weir-shim"
	shimContainer = "shim"
	definitions   = "customresourcedefinitions"
)

var daemonSets = appsv1.SchemeGroupVersion.WithResource("daemonsets")

// installed are the resources that Weir is installed with, in the order in which
// they go: who enforces first, and what protects or permits something last.
var installed = []schema.GroupVersionResource{
	daemonSets,
	{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"}, // Before who answers them.
	{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingwebhookconfigurations"},
	appsv1.SchemeGroupVersion.WithResource("deployments"),
	appsv1.SchemeGroupVersion.WithResource("statefulsets"),
	{Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"},
	{Version: "v1", Resource: "services"},
	{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingadmissionpolicybindings"},
	{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingadmissionpolicies"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "rolebindings"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "roles"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterrolebindings"},
	{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterroles"},
	{Version: "v1", Resource: "serviceaccounts"},
	{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"},
	{Version: "v1", Resource: "configmaps"},
	{Version: "v1", Resource: "secrets"},
}

// kept are the resources that hold what users wrote or what was recorded.
var kept = []schema.GroupVersionResource{
	{Group: "apiextensions.k8s.io", Version: "v1", Resource: definitions},
	{Version: "v1", Resource: "persistentvolumeclaims"},
	{Version: "v1", Resource: "namespaces"},
}

func newUninstall(streams Streams) *cobra.Command {
	u := uninstall{streams: streams}
	var cluster kubeconfig
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Take Weir out of a cluster, and leave traffic flowing",
		Long: `Take Weir out of a cluster, and leave traffic flowing.

First every node's shim removes its flows, tables and bridge settings, and only
then the rest goes: so no node is left closed. Policies, and the kinds that they
are of, stay, as does the record of the audit collector; --purge removes them too.`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	cluster.flags(cmd)
	f.StringVar(&u.namespace, "namespace", weirNamespace, "Namespace that Weir is in")
	f.BoolVar(&u.purge, "purge", false, "remove the CustomResourceDefinitions, and with them all policies, tiers and groups of these kinds, and the audit record, too")
	f.DurationVar(&u.timeout, "timeout", 5*time.Minute, "how long nodes may take to be cleaned, and kinds to go")
	f.BoolVar(&u.force, "force", false, "go on although nodes were not cleaned in time: they stay closed until their bridge is removed")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		config, _, err := cluster.load()
		if err != nil {
			return err
		}
		if u.api, err = dynamic.NewForConfig(config); err != nil {
			return fmt.Errorf("kubeconfig: %w", err)
		}
		return u.run(cmd.Context())
	}
	return cmd
}

// uninstall takes Weir out of a cluster.
type uninstall struct {
	streams      Streams
	api          dynamic.Interface
	namespace    string
	purge, force bool
	timeout      time.Duration
}

func (u *uninstall) say(format string, args ...any) { fmt.Fprintf(u.streams.Out, format+"\n", args...) }

func (u *uninstall) run(ctx context.Context) error {
	switch err := u.cleanNodes(ctx); {
	case errors.Is(err, context.DeadlineExceeded) && u.force:
		u.say("going on: %v", err)
	case err != nil:
		return err
	}
	all := slices.Clone(installed)
	if u.purge {
		all = append(all, kept...)
	}
	for _, r := range all {
		if err := u.remove(ctx, r); err != nil {
			return err
		}
	}
	if u.purge {
		return u.awaitKinds(ctx)
	}
	// The kind of our own holds nothing of users'.
	const own = "nodeendpoints.weir.dev"
	err := u.api.Resource(kept[0]).Delete(ctx, own, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete %s: %w", own, err)
	}
	u.say("kept: the policies with their kinds, the audit record, and Namespace %s; weirctl uninstall --purge removes them", u.namespace)
	return nil
}

// cleanNodes has the shims clean up after themselves, and waits for all.
func (u *uninstall) cleanNodes(ctx context.Context) error {
	sets := u.api.Resource(daemonSets).Namespace(u.namespace)
	o, err := sets.Get(ctx, shimDaemonSet, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		u.say("no DaemonSet %s/%s: there are no nodes to clean", u.namespace, shimDaemonSet)
		return nil
	}
	if err != nil {
		return fmt.Errorf("DaemonSet %s/%s: %w", u.namespace, shimDaemonSet, err)
	}
	patch, err := cleaningPatch(o)
	if err != nil {
		return fmt.Errorf("DaemonSet %s/%s: %w", u.namespace, shimDaemonSet, err)
	}
	if patch != nil {
		if o, err = sets.Patch(ctx, shimDaemonSet, types.StrategicMergePatchType, patch, metav1.PatchOptions{FieldManager: "weirctl"}); err != nil {
			return fmt.Errorf("DaemonSet %s/%s: have the shims clean their nodes: %w", u.namespace, shimDaemonSet, err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, u.timeout)
	defer cancel()
	for said := ""; ; {
		d := &appsv1.DaemonSet{}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, d); err != nil {
			return err
		}
		s := d.Status
		done := s.ObservedGeneration >= d.Generation && s.UpdatedNumberScheduled >= s.DesiredNumberScheduled && s.NumberReady >= s.DesiredNumberScheduled
		ready := min(s.NumberReady, s.UpdatedNumberScheduled)
		if s.ObservedGeneration < d.Generation {
			ready = 0
		}
		if text := fmt.Sprintf("%d of %d nodes are clean", ready, s.DesiredNumberScheduled); text != said {
			said = text
			u.say("%s", text)
		}
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s after %s: look at the Pods of DaemonSet %s/%s, or give --force: %w", said, u.timeout, u.namespace, shimDaemonSet, ctx.Err())
		case <-time.After(time.Second):
		}
		if o, err = sets.Get(ctx, shimDaemonSet, metav1.GetOptions{}); err != nil {
			if ctx.Err() != nil {
				continue
			}
			return fmt.Errorf("DaemonSet %s/%s: %w", u.namespace, shimDaemonSet, err)
		}
	}
}

// cleaningPatch makes the shim's container run "uninstall" with its flags, on all
// nodes at once; nil where it does already.
func cleaningPatch(o *unstructured.Unstructured) ([]byte, error) {
	d := &appsv1.DaemonSet{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, d); err != nil {
		return nil, err
	}
	for _, c := range d.Spec.Template.Spec.Containers {
		if c.Name != shimContainer {
			continue
		}
		if len(c.Args) > 0 && c.Args[0] == "uninstall" {
			return nil, nil
		}
		return json.Marshal(map[string]any{"spec": map[string]any{
			"updateStrategy": map[string]any{"type": "RollingUpdate", "rollingUpdate": map[string]any{"maxUnavailable": "100%", "maxSurge": 0}},
			"template": map[string]any{"spec": map[string]any{"containers": []any{
				map[string]any{"name": c.Name, "args": append([]string{"uninstall", "--wait"}, c.Args...)}}}},
		}})
	}
	return nil, fmt.Errorf("it has no container %s", shimContainer)
}

// remove deletes what bears our label.
func (u *uninstall) remove(ctx context.Context, r schema.GroupVersionResource) error {
	list, err := u.api.Resource(r).List(ctx, metav1.ListOptions{LabelSelector: api.LabelPartOf + "=" + api.PartOf})
	if err != nil {
		return fmt.Errorf("list %s: %w", r.Resource, err)
	}
	background := metav1.DeletePropagationBackground
	for i := range list.Items {
		o := &list.Items[i]
		var on dynamic.ResourceInterface = u.api.Resource(r)
		name := o.GetName()
		if ns := o.GetNamespace(); ns != "" {
			on, name = u.api.Resource(r).Namespace(ns), ns+"/"+name
		}
		err := on.Delete(ctx, o.GetName(), metav1.DeleteOptions{PropagationPolicy: &background})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("delete %s %s: %w", strings.TrimSuffix(r.Resource, "s"), name, err)
		}
		u.say("removed %s %s", r.Resource, name)
	}
	return nil
}

// awaitKinds waits until the kinds are gone, which is when all of their objects are.
func (u *uninstall) awaitKinds(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, u.timeout)
	defer cancel()
	for said := 0; ; {
		list, err := u.api.Resource(kept[0]).List(ctx, metav1.ListOptions{LabelSelector: api.LabelPartOf + "=" + api.PartOf})
		switch {
		case err != nil && ctx.Err() == nil:
			return fmt.Errorf("list %s: %w", kept[0].Resource, err)
		case err == nil && len(list.Items) == 0:
			return nil
		case err == nil && len(list.Items) != said:
			said = len(list.Items)
			u.say("%d kinds are going, and their objects with them", said)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d kinds are not gone after %s: look for finalizers of their objects (kubectl get crd -l %s=%s): %w", said, u.timeout, api.LabelPartOf, api.PartOf, ctx.Err())
		case <-time.After(500 * time.Millisecond):
		}
	}
}
