package harness

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Container runs a container of a Pod without an image: on the file system of
// this machine, of which it sees a copy that is gone with it, as its user and with
// its capabilities alone, and with its volumes where it expects them. Processes
// and their numbers it shares with the machine.
type Container struct {
	Pod  *corev1.Pod // As the API server has it.
	Name string      // Of the container in it.
	NS   *NetNS      // The Pod's network.
	Bin  string      // Folder that is its /usr/local/bin.
	Dir  string      // Of its own; made where it is missing.
	// Volumes are the folders that the Pod's volumes are, by name. Mounts are more
	// of them, by where the container sees them: the kubelet has its own.
	Volumes, Mounts map[string]string
	Env             map[string]string // Of the kubelet: what Services there are.
	HostIP          string
	Hosts           string // Its /etc/hosts, in place of DNS.
}

// Process is the container as a process, which is not started.
func (c Container) Process() (*Process, error) {
	spec, err := c.spec()
	if err != nil {
		return nil, err
	}
	env, err := c.env(spec)
	if err != nil {
		return nil, err
	}
	script, err := c.script(spec)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(c.Dir, "root"), 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(c.Dir, "hosts"), []byte(c.Hosts), 0o644); err != nil {
		return nil, err
	}
	run := []string{"--mount", "--propagation", "private", "--", "/bin/sh", "-ec", script, "sh"}
	run = append(run, c.privileges(spec)...)
	run = append(run, "/usr/bin/env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	for _, name := range slices.Sorted(maps.Keys(env)) {
		run = append(run, name+"="+env[name])
	}
	for _, a := range slices.Concat(spec.Command, spec.Args) {
		run = append(run, expand(a, env))
	}
	return &Process{Name: c.Pod.Name + "/" + c.Name, Log: filepath.Join(c.Dir, "log"), ns: c.NS, bin: "unshare", args: run}, nil
}

func (c Container) spec() (*corev1.Container, error) {
	for _, list := range [][]corev1.Container{c.Pod.Spec.InitContainers, c.Pod.Spec.Containers} {
		for i := range list {
			if list[i].Name == c.Name {
				return &list[i], nil
			}
		}
	}
	return nil, fmt.Errorf("Pod %s has no container %s", c.Pod.Name, c.Name)
}

// env is what the kubelet gives the container.
func (c Container) env(spec *corev1.Container) (map[string]string, error) {
	env := maps.Clone(c.Env)
	for _, e := range spec.Env {
		switch ref := e.ValueFrom; {
		case ref == nil:
			env[e.Name] = expand(e.Value, env)
		case ref.FieldRef == nil:
			return nil, fmt.Errorf("%s: the value of %s is of no field", c.Pod.Name, e.Name)
		default:
			value, known := map[string]string{"metadata.namespace": c.Pod.Namespace, "metadata.name": c.Pod.Name, "spec.nodeName": c.Pod.Spec.NodeName, "status.hostIP": c.HostIP}[ref.FieldRef.FieldPath]
			if !known {
				return nil, fmt.Errorf("%s: the field %s of %s is not known", c.Pod.Name, ref.FieldRef.FieldPath, e.Name)
			}
			env[e.Name] = value
		}
	}
	return env, nil
}

// expand puts variables in for $(NAME), as the kubelet does.
func expand(text string, env map[string]string) string {
	var out strings.Builder
	for {
		before, rest, found := strings.Cut(text, "$")
		out.WriteString(before)
		if !found {
			return out.String()
		}
		text = rest
		if after, is := strings.CutPrefix(rest, "$"); is {
			out.WriteByte('$')
			text = after
			continue
		}
		if name, after, is := strings.Cut(strings.TrimPrefix(rest, "("), ")"); is && strings.HasPrefix(rest, "(") {
			if value, known := env[name]; known {
				out.WriteString(value)
				text = after
				continue
			}
		}
		out.WriteByte('$')
	}
}

// script makes the container's file system and runs its arguments there.
func (c Container) script(spec *corev1.Container) (string, error) {
	root := filepath.Join(c.Dir, "root")
	lines := []string{
		"mount -t tmpfs container " + root, "cd " + root, "mkdir upper work root",
		"mount -t overlay container -o lowerdir=/,upperdir=upper,workdir=work root",
		"cp " + filepath.Join(c.Dir, "hosts") + " root/etc/hosts", "mkdir -p root/usr/local/bin", "mount --bind " + c.Bin + " root/usr/local/bin",
		"for d in proc dev sys; do mount --rbind /$d root/$d; done",
	}
	mount := func(from, to string, readOnly bool) {
		lines = append(lines, "to=root$(chroot root readlink -m "+to+")", "mkdir -p $to", "mount --bind "+from+" $to") // /var/run is a link.
		if readOnly {
			lines = append(lines, "mount -o remount,bind,ro $to")
		}
	}
	for _, m := range spec.VolumeMounts {
		from, known := c.Volumes[m.Name]
		if !known {
			return "", fmt.Errorf("%s: volume %s is nowhere", c.Pod.Name, m.Name)
		}
		mount(from, m.MountPath, m.ReadOnly)
	}
	for to, from := range c.Mounts {
		mount(from, to, true)
	}
	if s := spec.SecurityContext; s.Privileged == nil || !*s.Privileged {
		lines = append(lines, "mount --bind root/proc/sys root/proc/sys", "mount -o remount,bind,ro root/proc/sys")
	}
	if s := spec.SecurityContext; s.ReadOnlyRootFilesystem != nil && *s.ReadOnlyRootFilesystem {
		lines = append(lines, "mount -o remount,ro root")
	}
	return strings.Join(append(lines, `exec chroot root "$@"`), "\n"), nil
}

// privileges is the command that leaves the container no more than its own.
func (c Container) privileges(spec *corev1.Container) []string {
	user, group := int64(0), int64(0)
	if p := c.Pod.Spec.SecurityContext; p != nil {
		if p.RunAsUser != nil {
			user = *p.RunAsUser
		}
		if p.RunAsGroup != nil {
			group = *p.RunAsGroup
		}
	}
	s := spec.SecurityContext
	if s.RunAsUser != nil {
		user = *s.RunAsUser
	}
	out := []string{"/usr/bin/setpriv", "--pdeathsig", "KILL", fmt.Sprintf("--reuid=%d", user), fmt.Sprintf("--regid=%d", group), "--clear-groups"}
	if s.Privileged != nil && *s.Privileged {
		return out
	}
	caps := "-all"
	for _, add := range s.Capabilities.Add {
		caps += ",+" + strings.ToLower(string(add))
	}
	return append(out, "--bounding-set="+caps, "--inh-caps=-all", "--no-new-privs")
}
