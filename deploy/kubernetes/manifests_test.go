// Package kubernetes holds what Swarmgate is run with on Kubernetes, and the tests that build it as
// kubectl apply -k does and refuse what an API server would refuse, or what would not work together.
package kubernetes

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"k8s.io/kube-openapi/pkg/validation/strfmt"
	"k8s.io/kube-openapi/pkg/validation/validate"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// overlays are what an operator applies.
var overlays = []string{"redis-cluster", "external-redis"}

// build makes the objects of an overlay, as JSON would hold them.
func build(t *testing.T, overlay string) (objects []map[string]any) {
	t.Helper()
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), overlay)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range built.Resources() {
		b, err := r.MarshalJSON()
		var o map[string]any
		if err = errors.Join(err, json.Unmarshal(b, &o)); err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
	}
	return objects
}

// manifests are decoded objects, each kind by name.
type manifests struct {
	deployments  map[string]*appsv1.Deployment
	statefulSets map[string]*appsv1.StatefulSet
	cronJobs     map[string]*batchv1.CronJob
	services     map[string]*corev1.Service
	configMaps   map[string]*corev1.ConfigMap
	scalers      map[string]*autoscalingv2.HorizontalPodAutoscaler
	budgets      map[string]*policyv1.PodDisruptionBudget
	policies     map[string]*networkingv1.NetworkPolicy
}

// decode reads objects as the API server does, and tells what it would refuse: kinds and fields that there are
// not, wrong types, required fields that are missing, values that are none of those allowed.
func decode(t *testing.T, objects []map[string]any) (m manifests, refused []string) {
	t.Helper()
	for _, o := range objects {
		apiVersion, _ := o["apiVersion"].(string)
		kind, _ := o["kind"].(string)
		metadata, _ := o["metadata"].(map[string]any)
		name, _ := metadata["name"].(string)
		refuse := func(err error) { refused = append(refused, fmt.Sprintf("%s %s: %v", kind, name, err)) }
		var typed any
		switch apiVersion + " " + kind {
		case "apps/v1 Deployment":
			typed = add(&m.deployments, name)
		case "apps/v1 StatefulSet":
			typed = add(&m.statefulSets, name)
		case "batch/v1 CronJob":
			typed = add(&m.cronJobs, name)
		case "v1 Service":
			typed = add(&m.services, name)
		case "v1 ConfigMap":
			typed = add(&m.configMaps, name)
		case "autoscaling/v2 HorizontalPodAutoscaler":
			typed = add(&m.scalers, name)
		case "policy/v1 PodDisruptionBudget":
			typed = add(&m.budgets, name)
		case "networking.k8s.io/v1 NetworkPolicy":
			typed = add(&m.policies, name)
		default: // a Secret among them: none belongs in a file
			refuse(fmt.Errorf("no %s %s belongs here", apiVersion, kind))
			continue
		}
		b, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		strict, err := kjson.UnmarshalStrict(b, typed)
		for _, err := range append(strict, err) {
			if err != nil {
				refuse(err)
			}
		}
		if err := validate.AgainstSchema(schemas(t).of(apiVersion, kind), o, strfmt.Default); err != nil {
			refuse(err)
		}
	}
	return m, refused
}

func add[T any](objects *map[string]*T, name string) *T {
	if *objects == nil {
		*objects = map[string]*T{}
	}
	o := new(T)
	(*objects)[name] = o
	return o
}

// definitions are the OpenAPI schemas of all of Kubernetes's types. They are those of 1.27, the only whole set in a
// module that the build needs anyway. They tell what is required and which values there are; newer fields they
// ignore, and the typed structs, which are up to date, tell those that there are not.
type definitions spec.Definitions

var schemas = func() func(t *testing.T) definitions {
	read := sync.OnceValues(func() (definitions, error) {
		dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kube-openapi").Output()
		if err != nil {
			return nil, err
		}
		b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "pkg/schemaconv/testdata/swagger.json"))
		if err != nil {
			return nil, err
		}
		var swagger spec.Swagger
		err = json.Unmarshal(b, &swagger)
		return definitions(swagger.Definitions), err
	})
	return func(t *testing.T) definitions {
		t.Helper()
		d, err := read()
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
}()

// of is the schema of a kind, without references.
func (d definitions) of(apiVersion, kind string) *spec.Schema {
	group, version := path.Split(apiVersion)
	want := map[string]any{"group": strings.TrimSuffix(group, "/"), "version": version, "kind": kind}
	for _, s := range d {
		kinds, _ := s.Extensions["x-kubernetes-group-version-kind"].([]any)
		if len(kinds) == 1 && fmt.Sprint(kinds[0]) == fmt.Sprint(want) {
			return d.resolved(&s)
		}
	}
	return nil
}

// resolved is a copy of s with what it refers to in place.
func (d definitions) resolved(s *spec.Schema) *spec.Schema {
	if s == nil {
		return nil
	}
	if ref := s.Ref.String(); ref != "" {
		definition := d[path.Base(ref)]
		return d.resolved(&definition)
	}
	c := *s
	if c.Format == "int-or-string" {
		c.Type, c.Format = nil, "" // this version of OpenAPI knows no type for it
	}
	c.Properties = map[string]spec.Schema{}
	for name, property := range s.Properties {
		c.Properties[name] = *d.resolved(&property)
	}
	if s.Items != nil {
		c.Items = &spec.SchemaOrArray{Schema: d.resolved(s.Items.Schema)}
	}
	if s.AdditionalProperties != nil {
		c.AdditionalProperties = &spec.SchemaOrBool{Allows: true, Schema: d.resolved(s.AdditionalProperties.Schema)}
	}
	return &c
}

func TestTheAPIServerWouldAcceptAll(t *testing.T) {
	for _, overlay := range overlays {
		t.Run(overlay, func(t *testing.T) {
			objects := build(t, overlay)
			if _, refused := decode(t, objects); len(refused) > 0 || len(objects) < 8 {
				t.Errorf("of %d objects are refused:\n%s", len(objects), strings.Join(refused, "\n"))
			}
		})
	}
}

// change sets what a path of keys and indices leads to, or with nil takes it away.
func change(t *testing.T, objects []map[string]any, object string, value any, path ...any) {
	t.Helper()
	kind, name, _ := strings.Cut(object, " ")
	for _, o := range objects {
		if o["kind"] != kind || o["metadata"].(map[string]any)["name"] != name {
			continue
		}
		var at any = o
		for _, key := range path[:len(path)-1] {
			switch key := key.(type) {
			case int:
				at = at.([]any)[key]
			case string:
				at = at.(map[string]any)[key]
			}
		}
		last := path[len(path)-1]
		if n, is := last.(int); is {
			at.([]any)[n] = value
		} else if fields := at.(map[string]any); value == nil {
			if _, there := fields[last.(string)]; !there {
				t.Fatalf("%s has no %v", object, path)
			}
			delete(fields, last.(string))
		} else {
			fields[last.(string)] = value
		}
		return
	}
	t.Fatalf("there is no %s", object)
}

// container is the path to the first container of a workload, with more after it.
func container(more ...any) []any {
	return append([]any{"spec", "template", "spec", "containers", 0}, more...)
}

const (
	gateway = "Deployment swarmgate"
	redis   = "StatefulSet swarmgate-redis"
	service = "Service swarmgate"
	scaler  = "HorizontalPodAutoscaler swarmgate"
	budget  = "PodDisruptionBudget swarmgate"
	policy  = "NetworkPolicy swarmgate"
	former  = "CronJob swarmgate-form-cluster"
)

func TestTheAPIServerWouldRefuse(t *testing.T) {
	for what, c := range map[string]struct {
		object string
		value  any
		path   []any
		want   string
	}{
		"a field that there is not":      {gateway, map[string]any{}, container("readynessProbe"), `unknown field "spec.template.spec.containers[0].readynessProbe"`},
		"a field in other case":          {redis, 3.0, []any{"spec", "Replicas"}, `unknown field "spec.Replicas"`},
		"a field of another kind":        {budget, 2.0, []any{"spec", "minReplicas"}, `unknown field "spec.minReplicas"`},
		"text in place of a number":      {gateway, "20", []any{"spec", "template", "spec", "terminationGracePeriodSeconds"}, "terminationGracePeriodSeconds"},
		"a number in place of text":      {gateway, 1.0, container("env", 0, "value"), "env.value"},
		"an object in place of a list":   {policy, map[string]any{}, []any{"spec", "ingress"}, "spec.ingress"},
		"an amount that is none":         {gateway, "512 MB", container("resources", "limits", "memory"), "quantities must match"},
		"an integer with a fraction":     {scaler, 2.5, []any{"spec", "minReplicas"}, "minReplicas"},
		"no name of a container":         {redis, nil, container("name"), "containers[0].name in body is required"},
		"no image's port":                {gateway, nil, container("ports", 0, "containerPort"), "containerPort"},
		"no key of a secret":             {gateway, nil, container("env", 3, "valueFrom", "secretKeyRef", "key"), "secretKeyRef.key"},
		"no selector":                    {gateway, nil, []any{"spec", "selector"}, "spec.selector"},
		"no pods of a policy":            {policy, nil, []any{"spec", "podSelector"}, "spec.podSelector"},
		"no most replicas":               {scaler, nil, []any{"spec", "maxReplicas"}, "spec.maxReplicas"},
		"no schedule":                    {former, nil, []any{"spec", "schedule"}, "spec.schedule"},
		"no key to spread over":          {redis, nil, []any{"spec", "template", "spec", "topologySpreadConstraints", 0, "topologyKey"}, "topologyKey"},
		"no port of a service":           {service, nil, []any{"spec", "ports", 0, "port"}, "spec.ports[0].port in body is required"},
		"a traffic policy there is not":  {service, "Locl", []any{"spec", "externalTrafficPolicy"}, "should be one of [Cluster Local]"},
		"a type of service there is not": {service, "LoadBalance", []any{"spec", "type"}, "should be one of [ClusterIP"},
		"a protocol there is not":        {gateway, "udp", container("ports", 1, "protocol"), "should be one of [SCTP TCP UDP]"},
		"a profile there is not":         {redis, "Default", []any{"spec", "template", "spec", "securityContext", "seccompProfile", "type"}, "should be one of [Localhost"},
		"a version that is gone":         {budget, "policy/v1beta1", []any{"apiVersion"}, "policy/v1beta1 PodDisruptionBudget"},
		"a kind that needs an operator":  {budget, "ServiceMonitor", []any{"kind"}, "policy/v1 ServiceMonitor"},
	} {
		t.Run(what, func(t *testing.T) {
			objects := build(t, "redis-cluster")
			change(t, objects, c.object, c.value, c.path...)
			_, refused := decode(t, objects)
			if !strings.Contains(strings.Join(refused, "\n"), c.want) {
				t.Errorf("not refused with %q: %q", c.want, refused)
			}
		})
	}
}
