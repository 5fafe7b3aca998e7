package admission

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weirnet/weir/services/policy/api"
)

// Model is what there is, by which a change is judged.
type Model interface {
	// Change judges a change as validate.Index does.
	Change(old, changed api.Object) (violations, warnings []api.Violation)
	// Complete says whether everything has been read. Before that no change is judged.
	Complete() bool
}

// Config of a Webhook. All fields are required.
type Config struct {
	Model    Model
	Registry prometheus.Registerer
	Logger   hclog.Logger
}

// Webhook answers admission reviews. It is an http.Handler; paths are in the
// package comment.
type Webhook struct {
	http.Handler
	model    Model
	logger   hclog.Logger
	reviewed *prometheus.CounterVec
	took     prometheus.Histogram
}

// maxReviewBytes is the size of the largest review: the API server takes requests
// of 3 MiB, and a review holds the object as it was and as it is to be.
const maxReviewBytes = 8 << 20

// New makes a Webhook.
func New(cfg Config) *Webhook {
	w := &Webhook{model: cfg.Model, logger: cfg.Logger,
		reviewed: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "weir_policy_admission_reviews_total", Help: "Admission reviews, by webhook and outcome (allowed, refused, failed)."}, []string{"webhook", "outcome"}),
		took: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "weir_policy_admission_seconds", Help: "Time that an admission review took.",
			Buckets: []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5}})}
	cfg.Registry.MustRegister(w.reviewed, w.took)
	mux := http.NewServeMux()
	for path, review := range map[string]func(*admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error){
		"validate": w.validate, "default": w.fillIn, "changed-by": w.changedBy, "mutate/namespace": w.labelNamespace,
	} {
		mux.Handle("POST /"+path, w.reviews(path, review))
	}
	w.Handler = mux
	return w
}

// errIncomplete is the answer while the cluster is being read: the API server then
// does as the webhook's failure policy says.
var errIncomplete = errors.New("the cluster has not been read yet; try again in a moment")

// reviews is the protocol around a review.
func (w *Webhook) reviews(name string, review func(*admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error)) http.Handler {
	return http.HandlerFunc(func(out http.ResponseWriter, in *http.Request) {
		start := time.Now()
		request, err := readReview(http.MaxBytesReader(out, in.Body, maxReviewBytes))
		if err != nil {
			w.reviewed.WithLabelValues(name, "failed").Inc()
			http.Error(out, err.Error(), http.StatusBadRequest)
			return
		}
		response, err := review(request)
		if err != nil {
			w.reviewed.WithLabelValues(name, "failed").Inc()
			w.logger.Warn("admission review failed", "webhook", name, "kind", request.Kind.Kind, "namespace", request.Namespace, "name", request.Name, "err", err)
			code := http.StatusInternalServerError
			if errors.Is(err, errIncomplete) {
				code = http.StatusServiceUnavailable
			}
			http.Error(out, err.Error(), code)
			return
		}
		response.UID = request.UID
		outcome := "allowed"
		if !response.Allowed {
			outcome = "refused"
			w.logger.Info("refused", "operation", request.Operation, "kind", request.Kind.Kind, "namespace", request.Namespace, "name", request.Name, "user", request.UserInfo.Username, "why", response.Result.Message)
		}
		w.reviewed.WithLabelValues(name, outcome).Inc()
		w.took.Observe(time.Since(start).Seconds())
		out.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(out).Encode(admissionv1.AdmissionReview{ // The API server has gone otherwise, and knows.
			TypeMeta: metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "AdmissionReview"}, Response: response})
	})
}

func readReview(body io.Reader) (*admissionv1.AdmissionRequest, error) {
	var review admissionv1.AdmissionReview
	if err := json.NewDecoder(body).Decode(&review); err != nil {
		return nil, fmt.Errorf("not an AdmissionReview: %w", err)
	}
	if want := admissionv1.SchemeGroupVersion.String(); review.APIVersion != want || review.Request == nil {
		return nil, fmt.Errorf("not an AdmissionReview of %s with a request, but %s %q", want, review.APIVersion, review.Kind)
	}
	return review.Request, nil
}

var allowed = admissionv1.AdmissionResponse{Allowed: true}

// validate judges a change by what the object says and by what else there is. A
// change that leaves alone what an object says is not judged: objects that were
// there before Weir must be able to go, and to lose their finalizers.
func (w *Webhook) validate(r *admissionv1.AdmissionRequest) (*admissionv1.AdmissionResponse, error) {
	response := allowed
	var old, changed api.Object
	if len(r.OldObject.Raw) > 0 {
		old, _ = api.DecodeObject(r.OldObject.Raw) // One that cannot be read is none that others depend on.
	}
	var violations, warnings []api.Violation
	switch r.Operation {
	case admissionv1.Create, admissionv1.Update:
		if r.Operation == admissionv1.Update && saysTheSame(r.OldObject.Raw, r.Object.Raw) {
			return &response, nil
		}
		var err error
		changed, warnings, err = api.ReviewObject(r.Object.Raw)
		var invalid *api.Invalid
		switch {
		case errors.As(err, &invalid):
			violations, changed = invalid.Violations, api.Outline(r.Object.Raw)
		case err != nil:
			return nil, err
		}
	case admissionv1.Delete:
		if old == nil {
			return &response, nil
		}
	default:
		return &response, nil
	}
	if len(violations) == 0 && !w.model.Complete() {
		return nil, errIncomplete
	}
	if changed != nil || old != nil && r.Operation == admissionv1.Delete {
		more, wary := w.model.Change(old, changed)
		violations = append(violations, more...)
		if len(violations) == 0 {
			warnings = append(warnings, wary...)
		}
	}
	if len(violations) > 0 {
		response.Allowed, response.Result = false, refusal(r, violations)
	}
	response.Warnings = texts(warnings)
	return &response, nil
}

// refusal says all that is wrong: in the message for those who show that, and as
// causes, of which kubectl makes a list.
func refusal(r *admissionv1.AdmissionRequest, violations []api.Violation) *metav1.Status {
	s := &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid,
		Details: &metav1.StatusDetails{Group: r.Kind.Group, Kind: r.Kind.Kind, Name: r.Name}}
	if r.Operation == admissionv1.Delete {
		s.Code, s.Reason = http.StatusForbidden, metav1.StatusReasonForbidden
	}
	for _, v := range violations {
		s.Details.Causes = append(s.Details.Causes, metav1.StatusCause{Type: metav1.CauseTypeFieldValueInvalid, Field: cmp.Or(v.Field, "metadata.name"), Message: v.Message})
	}
	s.Message = strings.Join(texts(violations), "; ")
	return s
}

// texts are violations of one object, which whoever reads them knows the name of.
func texts(list []api.Violation) (out []string) {
	for _, v := range list {
		text := v.Message
		if v.Field != "" {
			text = v.Field + ": " + text
		}
		out = append(out, text)
	}
	return slices.Compact(out)
}

// content is what an object says: all but what the API server and controllers keep
// with it.
type content struct {
	Metadata struct {
		Labels      map[string]string `json:"labels"`
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec json.RawMessage `json:"spec"`
}

func contentOf(raw []byte) (c content, err error) {
	err = json.Unmarshal(raw, &c)
	delete(c.Metadata.Annotations, api.AnnotationChangedBy)
	return c, err
}

// saysTheSame compares what two objects say. Fields of an object that an API
// server sends are in order.
func saysTheSame(old, changed []byte) bool {
	a, err := contentOf(old)
	if err != nil {
		return false
	}
	b, err := contentOf(changed)
	return err == nil && bytes.Equal(a.Spec, b.Spec) && maps.Equal(a.Metadata.Labels, b.Metadata.Labels) && maps.Equal(a.Metadata.Annotations, b.Metadata.Annotations)
}
