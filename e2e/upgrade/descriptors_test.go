package upgrade

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	auditv1 "github.com/weirnet/weir/proto/weir/audit/v1"
	policyv1 "github.com/weirnet/weir/proto/weir/policy/v1"
)

const descriptorsFile = "descriptors.binpb"

// saveDescriptors writes those of the messages that shims and services exchange,
// with all that they import.
func saveDescriptors(t *testing.T, dir string) {
	t.Helper()
	set, seen := &descriptorpb.FileDescriptorSet{}, make(map[string]bool)
	var add func(protoreflect.FileDescriptor)
	add = func(f protoreflect.FileDescriptor) {
		if seen[f.Path()] {
			return
		}
		seen[f.Path()] = true
		for i := range f.Imports().Len() {
			add(f.Imports().Get(i).FileDescriptor)
		}
		set.File = append(set.File, protodesc.ToFileDescriptorProto(f))
	}
	add(policyv1.File_weir_policy_v1_service_proto)
	add(auditv1.File_weir_audit_v1_audit_proto)
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(set)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, descriptorsFile), b, 0o644))
}

// then are the descriptors of the version before.
func then(t *testing.T) *protoregistry.Files {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", recorded, descriptorsFile))
	must(t, err)
	set := &descriptorpb.FileDescriptorSet{}
	must(t, proto.Unmarshal(b, set))
	files, err := protodesc.NewFiles(set)
	must(t, err)
	return files
}

func messageThen(t *testing.T, files *protoregistry.Files, name protoreflect.FullName) protoreflect.MessageDescriptor {
	t.Helper()
	d, err := files.FindDescriptorByName(name)
	must(t, err)
	return d.(protoreflect.MessageDescriptor)
}

// compared are the messages that are exchanged, with who reads them.
var compared = []proto.Message{&policyv1.SubscribeRequest{}, &policyv1.SubscribeResponse{}, &auditv1.ReportRequest{}, &auditv1.ReportResponse{},
	&auditv1.TailRequest{}, &auditv1.TailResponse{}}

// judged are fields and values that the version before does not know, by their full
// names, with the reason why a reader of then does no harm without them: it is told
// of them only where its Hello says that it knows them, or what it does without is
// right, if less. A deny, a narrower match or a new kind of item is never among
// these: such a cut must not go to a shim that has not said that it knows it.
var judged = map[string]string{}

// Every field, value and type that the version before knows is as it was, and each
// that is new has been judged.
func TestWhatIsNewIsJudged(t *testing.T) {
	files, found := then(t), make(map[string]bool)
	for _, m := range compared {
		now := m.ProtoReflect().Descriptor()
		for _, difference := range differences(messageThen(t, files, now.FullName()), now, make(map[protoreflect.FullName]bool)) {
			found[difference] = true
			if judged[difference] == "" {
				t.Errorf("%s is not judged: a reader of version %s is told what it cannot know", difference, recorded)
			}
		}
	}
	for name := range judged {
		if !found[name] {
			t.Errorf("%s is judged, and is no difference", name)
		}
	}
}

// differences are what a message, and those within it, have more, less or otherwise
// than they had.
func differences(was, is protoreflect.MessageDescriptor, seen map[protoreflect.FullName]bool) (out []string) {
	if seen[is.FullName()] {
		return nil
	}
	seen[is.FullName()] = true
	for i := range was.Fields().Len() {
		if f := was.Fields().Get(i); is.Fields().ByNumber(f.Number()) == nil {
			out = append(out, fmt.Sprintf("%s gone", f.FullName()))
		}
	}
	for i := range is.Fields().Len() {
		f := is.Fields().Get(i)
		before := was.Fields().ByNumber(f.Number())
		switch {
		case before == nil:
			out = append(out, string(f.FullName()))
			continue
		case before.Kind() != f.Kind() || before.Cardinality() != f.Cardinality() || before.Name() != f.Name() || oneofOf(before) != oneofOf(f):
			out = append(out, fmt.Sprintf("%s changed", f.FullName()))
			continue
		}
		if f.Message() != nil {
			if f.Message().FullName() != before.Message().FullName() {
				out = append(out, fmt.Sprintf("%s changed", f.FullName()))
				continue
			}
			out = append(out, differences(before.Message(), f.Message(), seen)...)
		}
		if f.Enum() != nil && !seen[f.Enum().FullName()] {
			seen[f.Enum().FullName()] = true
			for j := range f.Enum().Values().Len() {
				v := f.Enum().Values().Get(j)
				if old := before.Enum().Values().ByNumber(v.Number()); old == nil || old.Name() != v.Name() {
					out = append(out, fmt.Sprintf("%s.%s", f.Enum().FullName(), v.Name()))
				}
			}
		}
	}
	return out
}

func oneofOf(f protoreflect.FieldDescriptor) protoreflect.Name {
	if o := f.ContainingOneof(); o != nil {
		return o.Name()
	}
	return ""
}

// The comparison notices what it is there for.
func TestDifferencesAreNoticed(t *testing.T) {
	files := then(t)
	change := func(fn func(*descriptorpb.FileDescriptorProto)) protoreflect.MessageDescriptor {
		set := &descriptorpb.FileDescriptorSet{}
		files.RangeFiles(func(f protoreflect.FileDescriptor) bool {
			p := protodesc.ToFileDescriptorProto(f)
			if f.Path() == "weir/policy/v1/state.proto" {
				fn(p)
			}
			set.File = append(set.File, p)
			return true
		})
		changed, err := protodesc.NewFiles(set)
		must(t, err)
		return messageThen(t, changed, "weir.policy.v1.SubscribeResponse")
	}
	rule := func(p *descriptorpb.FileDescriptorProto) *descriptorpb.DescriptorProto {
		return p.MessageType[slices.IndexFunc(p.MessageType, func(m *descriptorpb.DescriptorProto) bool { return m.GetName() == "Rule" })]
	}
	was := messageThen(t, files, "weir.policy.v1.SubscribeResponse")
	for want, fn := range map[string]func(*descriptorpb.FileDescriptorProto){
		"weir.policy.v1.Rule.narrower": func(p *descriptorpb.FileDescriptorProto) {
			rule(p).Field = append(rule(p).Field, &descriptorpb.FieldDescriptorProto{Name: proto.String("narrower"), JsonName: proto.String("narrower"), Number: proto.Int32(99),
				Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(), Type: descriptorpb.FieldDescriptorProto_TYPE_BOOL.Enum()})
		},
		"weir.policy.v1.Rule.log gone": func(p *descriptorpb.FileDescriptorProto) {
			rule(p).Field = slices.DeleteFunc(rule(p).Field, func(f *descriptorpb.FieldDescriptorProto) bool { return f.GetName() == "log" })
		},
		"weir.policy.v1.Rule.index changed": func(p *descriptorpb.FileDescriptorProto) {
			for _, f := range rule(p).Field {
				if f.GetName() == "index" {
					f.Type = descriptorpb.FieldDescriptorProto_TYPE_SINT32.Enum()
				}
			}
		},
		"weir.policy.v1.Action.ACTION_NEW": func(p *descriptorpb.FileDescriptorProto) {
			for _, e := range p.EnumType {
				if e.GetName() == "Action" {
					e.Value = append(e.Value, &descriptorpb.EnumValueDescriptorProto{Name: proto.String("ACTION_NEW"), Number: proto.Int32(9)})
				}
			}
		},
	} {
		if got := differences(was, change(fn), make(map[protoreflect.FullName]bool)); !slices.Equal(got, []string{want}) {
			t.Errorf("differences %v, want %s", got, want)
		}
	}
}

// Whatever the present services and shim say is read by the version before without
// a field that it does not know, but for those that are judged.
func TestPresentStreamsAreUnderstood(t *testing.T) {
	policyd, collector, _, _ := live(t)
	files := then(t)
	kinds := map[string][2]protoreflect.FullName{ // From the client, from the service.
		"Subscribe": {"weir.policy.v1.SubscribeRequest", "weir.policy.v1.SubscribeResponse"},
		"Report":    {"weir.audit.v1.ReportRequest", "weir.audit.v1.ReportResponse"},
		"Tail":      {"weir.audit.v1.TailRequest", "weir.audit.v1.TailResponse"},
	}
	unknown, read := make(map[string]bool), make(map[string]bool)
	for _, r := range []*recorder{policyd, collector} {
		for name, messages := range r.streams {
			method := filepath.Ext(name)[1:]
			for _, m := range messages {
				kind := kinds[method][0]
				if m.fromService {
					kind = kinds[method][1]
				}
				d := dynamicpb.NewMessage(messageThen(t, files, kind))
				must(t, proto.Unmarshal(m.body, d))
				survey(d, unknown, read)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(unknown)) {
		t.Errorf("%s has a field that version %s does not know", name, recorded)
	}
	for _, body := range []string{"node", "endpoint", "policy", "member", "route", "service", "backend"} {
		if !read["weir.policy.v1.Item."+body] {
			t.Errorf("no item is a %s: the objects leave it out", body)
		}
	}
}

// survey notes which messages have unknown fields, and which fields are set.
func survey(m protoreflect.Message, unknown, read map[string]bool) {
	if len(m.GetUnknown()) > 0 {
		unknown[string(m.Descriptor().FullName())] = true
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		read[string(f.FullName())] = true
		switch {
		case f.IsMap() || f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				survey(v.List().Get(i).Message(), unknown, read)
			}
		default:
			survey(v.Message(), unknown, read)
		}
		return true
	})
}
