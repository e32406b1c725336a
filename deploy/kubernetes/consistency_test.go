package kubernetes

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// outside is what the manifests have to go with.
type outside struct {
	gateway string            // the program
	flags   map[string]string // of it, by variable, with their defaults
	compose string
	docker  string
	readme  string
}

func readOutside(t *testing.T) *outside {
	t.Helper()
	o := &outside{gateway: filepath.Join(t.TempDir(), "gateway"), flags: map[string]string{}}
	if out, err := exec.Command("go", "build", "-o", o.gateway, "swarmgate/gateway").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	help, err := exec.Command(o.gateway, "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	flag := regexp.MustCompile(`(?m)^ +--([a-z-]+) .*?(?:\(default "?([^)"]*)"?\))?$`)
	for _, m := range flag.FindAllStringSubmatch(string(help), -1) {
		o.flags["SWARMGATE_"+strings.ToUpper(strings.ReplaceAll(m[1], "-", "_"))] = m[2]
	}
	for file, text := range map[string]*string{
		"../../docker-compose.yml": &o.compose, "../compose/gateway.yml": &o.compose, "../Dockerfile": &o.docker, "README.md": &o.readme,
	} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		*text += string(b)
	}
	return o
}

// checker collects what does not go together.
type checker struct {
	manifests
	*outside
	flaws []string
}

func (c *checker) flaw(format string, args ...any) {
	c.flaws = append(c.flaws, fmt.Sprintf(format, args...))
}

// pods are the templates of all workloads.
func (c *checker) pods() map[string]*corev1.PodTemplateSpec {
	pods := map[string]*corev1.PodTemplateSpec{}
	for name, d := range c.deployments {
		pods["Deployment "+name] = &d.Spec.Template
	}
	for name, s := range c.statefulSets {
		pods["StatefulSet "+name] = &s.Spec.Template
	}
	for name, j := range c.cronJobs {
		pods["CronJob "+name] = &j.Spec.JobTemplate.Spec.Template
	}
	return pods
}

// selected are the pods of a selector, of which a flaw is told if there are none.
func (c *checker) selected(by string, s *metav1.LabelSelector) (pods []*corev1.PodTemplateSpec) {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		c.flaw("%s: %v", by, err)
		return nil
	}
	for _, pod := range c.pods() {
		if selector.Matches(labels.Set(pod.Labels)) {
			pods = append(pods, pod)
		}
	}
	if len(pods) == 0 {
		c.flaw("%s selects no pods", by)
	}
	return pods
}

// port tells whether a pod has a port of this name or number.
func port(pod *corev1.PodTemplateSpec, port intstr.IntOrString, protocol corev1.Protocol) bool {
	for _, container := range pod.Spec.Containers {
		for _, p := range container.Ports {
			if p.Protocol == protocol && (p.Name == port.String() || fmt.Sprint(p.ContainerPort) == port.String()) {
				return true
			}
		}
	}
	return false
}

func (c *checker) checkSelectors() {
	for name, d := range c.deployments {
		if !slices.Contains(c.selected("Deployment "+name, d.Spec.Selector), &d.Spec.Template) {
			c.flaw("Deployment %s does not select its own pods", name)
		}
	}
	for name, s := range c.statefulSets {
		if !slices.Contains(c.selected("StatefulSet "+name, s.Spec.Selector), &s.Spec.Template) {
			c.flaw("StatefulSet %s does not select its own pods", name)
		}
		if service := c.services[s.Spec.ServiceName]; service == nil || service.Spec.ClusterIP != corev1.ClusterIPNone {
			c.flaw("StatefulSet %s names no headless service", name)
		}
	}
	for name, s := range c.services {
		for _, pod := range c.selected("Service "+name, &metav1.LabelSelector{MatchLabels: s.Spec.Selector}) {
			for _, p := range s.Spec.Ports {
				if !port(pod, p.TargetPort, p.Protocol) {
					c.flaw("Service %s: pods have no port %s of %s", name, p.TargetPort.String(), p.Protocol)
				}
			}
		}
	}
	for owner, pod := range c.pods() {
		for _, spread := range pod.Spec.TopologySpreadConstraints {
			if !slices.Contains(c.selected(owner+"'s spread", spread.LabelSelector), pod) {
				c.flaw("%s spreads other pods than its own", owner)
			}
		}
	}
}

func (c *checker) checkPolicies() {
	covered := map[string][]networkingv1.PolicyType{}
	for name, p := range c.policies {
		by := "NetworkPolicy " + name
		own := c.selected(by, &p.Spec.PodSelector)
		for _, pod := range own {
			covered[pod.Labels["app.kubernetes.io/name"]] = append(covered[pod.Labels["app.kubernetes.io/name"]], p.Spec.PolicyTypes...)
		}
		for _, rule := range p.Spec.Ingress {
			c.checkRule(by, own, rule.Ports)
			c.peers(by, rule.From)
		}
		for _, rule := range p.Spec.Egress {
			if to := c.peers(by, rule.To); len(to) > 0 {
				c.checkRule(by, to, rule.Ports)
			}
		}
	}
	for owner, pod := range c.pods() {
		for _, direction := range []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress} {
			if !slices.Contains(covered[pod.Labels["app.kubernetes.io/name"]], direction) {
				c.flaw("%s: no NetworkPolicy for %s", owner, direction)
			}
		}
	}
}

func (c *checker) peers(by string, peers []networkingv1.NetworkPolicyPeer) (pods []*corev1.PodTemplateSpec) {
	for _, peer := range peers {
		if peer.PodSelector != nil {
			pods = append(pods, c.selected(by+"'s peer", peer.PodSelector)...)
		}
	}
	return pods
}

func (c *checker) checkRule(by string, pods []*corev1.PodTemplateSpec, ports []networkingv1.NetworkPolicyPort) {
	if len(ports) == 0 {
		c.flaw("%s lets all ports through", by)
	}
	for _, p := range ports {
		for _, pod := range pods {
			if !port(pod, *p.Port, *p.Protocol) {
				c.flaw("%s: pods have no port %s of %s", by, p.Port, *p.Protocol)
			}
		}
	}
}

// checkPod is what holds for the pods of every workload.
func (c *checker) checkPod(owner string, pod *corev1.PodTemplateSpec) {
	spec := &pod.Spec
	if s := spec.SecurityContext; s == nil || s.RunAsNonRoot == nil || !*s.RunAsNonRoot || s.SeccompProfile == nil ||
		s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		c.flaw("%s is not confined", owner)
	}
	if a := spec.AutomountServiceAccountToken; a == nil || *a {
		c.flaw("%s holds a token of the API server", owner)
	}
	for _, container := range spec.Containers {
		if s := container.SecurityContext; s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem ||
			s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation ||
			s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(s.Capabilities.Add) > 0 {
			c.flaw("%s is not confined", owner)
		}
		r := container.Resources
		if r.Requests.Cpu().IsZero() || r.Requests.Memory().IsZero() || r.Limits.Memory().IsZero() || r.Limits.Memory().Cmp(*r.Requests.Memory()) < 0 {
			c.flaw("%s: resources are %v", owner, r)
		}
		for _, probe := range []*corev1.Probe{container.StartupProbe, container.LivenessProbe, container.ReadinessProbe} {
			if probe != nil && probe.HTTPGet != nil && !port(pod, probe.HTTPGet.Port, corev1.ProtocolTCP) {
				c.flaw("%s: a probe asks at port %s, which is none", owner, probe.HTTPGet.Port.String())
			}
			if probe != nil && probe.Exec != nil {
				c.checkScript(owner, pod, &container, probe.Exec.Command)
			}
		}
		if len(container.Command) > 0 {
			c.checkScript(owner, pod, &container, container.Command)
		}
		for _, from := range container.EnvFrom {
			if from.ConfigMapRef == nil || c.configMaps[from.ConfigMapRef.Name] == nil {
				c.flaw("%s takes variables from nowhere", owner)
			}
		}
		var named []string
		for _, v := range container.Env {
			for _, m := range regexp.MustCompile(`\$\(([A-Z_]+)\)`).FindAllStringSubmatch(v.Value, -1) {
				if !slices.Contains(named, m[1]) {
					c.flaw("%s: %s names %s, which is not set before it", owner, v.Name, m[1])
				}
			}
			named = append(named, v.Name)
			if v.ValueFrom == nil || v.ValueFrom.SecretKeyRef == nil {
				if strings.Contains(v.Name, "SECRET") || strings.Contains(v.Name, "PASSWORD") || strings.Contains(v.Name, "AUTH") {
					c.flaw("%s: %s stands in the manifest", owner, v.Name)
				}
			} else if key := v.ValueFrom.SecretKeyRef; key.Name != "swarmgate" || !strings.Contains(c.readme, "--from-literal="+key.Key+"=") {
				c.flaw("%s: the README makes no key %s of Secret %s", owner, key.Key, key.Name)
			}
		}
	}
}

// checkScript looks for the script that sh is to run in the ConfigMap that is mounted there.
func (c *checker) checkScript(owner string, pod *corev1.PodTemplateSpec, container *corev1.Container, command []string) {
	if len(command) < 2 || command[0] != "sh" || command[1] == "-c" {
		return
	}
	for _, mount := range container.VolumeMounts {
		for _, volume := range pod.Spec.Volumes {
			if mount.Name != volume.Name || volume.ConfigMap == nil || c.configMaps[volume.ConfigMap.Name] == nil {
				continue
			}
			if _, there := c.configMaps[volume.ConfigMap.Name].Data[strings.TrimPrefix(command[1], mount.MountPath+"/")]; there {
				return
			}
		}
	}
	c.flaw("%s runs %s, which is not there", owner, command[1])
}

// variables are those that a gateway starts with.
func (c *checker) variables(container *corev1.Container) map[string]string {
	variables := map[string]string{}
	for _, from := range container.EnvFrom {
		if m := c.configMaps[from.ConfigMapRef.Name]; m != nil {
			maps.Copy(variables, m.Data)
		}
	}
	for _, v := range container.Env {
		variables[v.Name] = strings.ReplaceAll(v.Value, "$(REDIS_PASSWORD)", "0123456789abcdef")
	}
	return variables
}

func (c *checker) checkGateway() {
	d := c.deployments["swarmgate"]
	if d.Spec.Replicas != nil {
		c.flaw("the gateways' number is fixed")
	}
	spec := &d.Spec.Template.Spec
	container := &spec.Containers[0]
	variables := c.variables(container)
	for name := range variables {
		if _, is := c.flags[name]; strings.HasPrefix(name, "SWARMGATE_") && !is {
			c.flaw("%s is no flag", name)
		}
	}
	// Secrets of about the form that the README gives.
	variables["SWARMGATE_SECRET"] = "0123456789abcdef"
	if variables["SWARMGATE_REDIS"] == "" {
		variables["SWARMGATE_REDIS"] = "rediss://:0123456789abcdef@redis.example:6379"
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	health := exec.CommandContext(ctx, c.gateway, "health")
	for name, value := range variables {
		health.Env = append(health.Env, name+"="+value)
	}
	if out, _ := health.CombinedOutput(); health.ProcessState.ExitCode() == 2 {
		c.flaw("the gateway refuses its flags: %s", out)
	}

	var ends time.Duration
	for _, name := range []string{"SWARMGATE_DRAIN_DELAY", "SWARMGATE_DRAIN_TIMEOUT"} {
		d, err := time.ParseDuration(cmp.Or(variables[name], c.flags[name]))
		if err != nil || d == 0 {
			c.flaw("%s is %v, %v", name, d, err)
		}
		ends += d
	}
	if grace := time.Duration(*spec.TerminationGracePeriodSeconds) * time.Second; grace <= ends {
		c.flaw("a gateway has %v to end, and takes %v", grace, ends)
	}
	var soft int64
	if _, err := fmt.Sscanf(variables["GOMEMLIMIT"], "%dMiB", &soft); err != nil {
		c.flaw("GOMEMLIMIT: %v", err)
	}
	if hard := container.Resources.Limits.Memory().Value() >> 20; soft > hard*95/100 || soft < hard*80/100 {
		c.flaw("GOMEMLIMIT is %d MiB of %d", soft, hard)
	}
	if image := strings.Split(container.Image, ":")[0]; !strings.Contains(c.compose, "${GATEWAY_IMAGE:-"+image+"}") {
		c.flaw("compose builds no image %s", image)
	}
	if user := fmt.Sprintf("USER %d:%d\n", *spec.SecurityContext.RunAsUser, *spec.SecurityContext.RunAsGroup); !strings.Contains(c.docker, user) {
		c.flaw("the Dockerfile has no %s", user)
	}
	public := c.services["swarmgate"]
	if _, admin := variables["SWARMGATE_ADMIN"]; !admin || slices.ContainsFunc(public.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port != 6969 }) {
		c.flaw("the public service has ports %v", public.Spec.Ports)
	}
	if probe := container.ReadinessProbe.HTTPGet.Path; probe != "/readyz" || container.LivenessProbe.HTTPGet.Path != "/healthz" {
		c.flaw("the gateway is ready by %s and lives by %s", probe, container.LivenessProbe.HTTPGet.Path)
	}
}

func (c *checker) checkScaling() {
	for name, s := range c.scalers {
		if to := s.Spec.ScaleTargetRef; to.Kind != "Deployment" || to.APIVersion != "apps/v1" || c.deployments[to.Name] == nil {
			c.flaw("HorizontalPodAutoscaler %s scales %s %s, which is not there", name, to.Kind, to.Name)
		}
		if s.Spec.MinReplicas == nil || *s.Spec.MinReplicas < 2 || s.Spec.MaxReplicas < *s.Spec.MinReplicas {
			c.flaw("HorizontalPodAutoscaler %s scales to %d at most", name, s.Spec.MaxReplicas)
		}
	}
	for name, b := range c.budgets {
		replicas := 0
		for _, pod := range c.selected("PodDisruptionBudget "+name, b.Spec.Selector) {
			for _, s := range c.scalers {
				if pod == &c.deployments[s.Spec.ScaleTargetRef.Name].Spec.Template {
					replicas += int(*s.Spec.MinReplicas)
				}
			}
			for _, s := range c.statefulSets {
				if pod == &s.Spec.Template {
					replicas += int(*s.Spec.Replicas)
				}
			}
		}
		if n := b.Spec.MaxUnavailable.IntValue(); n < 1 || n >= replicas {
			c.flaw("PodDisruptionBudget %s lets %d of %d go", name, n, replicas)
		}
	}
}

func (c *checker) checkRedis() {
	s := c.statefulSets["swarmgate-redis"]
	if s == nil {
		return
	}
	var nodes []string
	for n := range int(*s.Spec.Replicas) {
		nodes = append(nodes, fmt.Sprintf("%s-%d.%s", s.Name, n, s.Spec.ServiceName))
	}
	former := c.cronJobs["swarmgate-form-cluster"].Spec.JobTemplate.Spec.Template.Spec.Containers[0]
	if !slices.Equal(former.Command[2:], nodes) {
		c.flaw("the cluster is formed of %v, the nodes are %v", former.Command[2:], nodes)
	}
	urls := c.variables(&c.deployments["swarmgate"].Spec.Template.Spec.Containers[0])["SWARMGATE_REDIS"]
	for url := range strings.SplitSeq(urls, ",") {
		if _, addr, _ := strings.Cut(url, "@"); !slices.Contains(nodes, strings.TrimSuffix(addr, ":6379")) {
			c.flaw("the gateways look for Redis at %s", addr)
		}
	}
	for _, image := range []string{former.Image, s.Spec.Template.Spec.Containers[0].Image} {
		if !strings.Contains(c.compose, "${REDIS_IMAGE:-"+image+"}") {
			c.flaw("compose takes another Redis than %s", image)
		}
	}
	if !c.services[s.Spec.ServiceName].Spec.PublishNotReadyAddresses {
		c.flaw("nodes have no names until the cluster is formed")
	}
}

// check tells what in objects does not go together.
func (o *outside) check(t *testing.T, objects []map[string]any) []string {
	t.Helper()
	m, refused := decode(t, objects)
	c := &checker{manifests: m, outside: o, flaws: refused}
	c.checkSelectors()
	c.checkPolicies()
	for owner, pod := range c.pods() {
		c.checkPod(owner, pod)
	}
	c.checkGateway()
	c.checkScaling()
	c.checkRedis()
	return c.flaws
}

func TestAllGoesTogether(t *testing.T) {
	o := readOutside(t)
	for _, overlay := range overlays {
		t.Run(overlay, func(t *testing.T) {
			for _, flaw := range o.check(t, build(t, overlay)) {
				t.Error(flaw)
			}
		})
	}
	spec := []any{"spec", "template", "spec"}
	for what, c := range map[string]struct {
		object string
		value  any
		path   []any
		want   string
	}{
		"pods with other labels":           {gateway, "x", []any{"spec", "template", "metadata", "labels", "app.kubernetes.io/name"}, "Deployment swarmgate selects no pods"},
		"a service of other pods":          {service, "swarmgate-redis", []any{"spec", "selector", "app.kubernetes.io/name"}, "Service swarmgate: pods have no port http"},
		"a target port that is not there":  {service, "web", []any{"spec", "ports", 0, "targetPort"}, "Service swarmgate: pods have no port web"},
		"a target port of UDP alone":       {service, "udp", []any{"spec", "ports", 0, "targetPort"}, "Service swarmgate: pods have no port udp of TCP"},
		"the admin port in public":         {service, 6970.0, []any{"spec", "ports", 0, "port"}, "the public service has ports"},
		"a probe of another port":          {gateway, 8080.0, container("livenessProbe", "httpGet", "port"), "a probe asks at port 8080"},
		"no readiness":                     {gateway, "/healthz", container("readinessProbe", "httpGet", "path"), "the gateway is ready by /healthz"},
		"a variable that is no flag":       {gateway, "SWARMGATE_PEER_TTTL", container("env", 2, "name"), "SWARMGATE_PEER_TTTL is no flag"},
		"a value that a flag refuses":      {gateway, "6970", container("env", 2, "value"), "the gateway refuses its flags: gateway: --admin"},
		"no time to drain":                 {gateway, 15.0, append(spec, "terminationGracePeriodSeconds"), "a gateway has 15s to end, and takes 15s"},
		"a long delay":                     {gateway, "10s", container("env", 5, "value"), "a gateway has 20s to end, and takes 20s"},
		"no delay":                         {gateway, "0", container("env", 5, "value"), "SWARMGATE_DRAIN_DELAY is 0s"},
		"memory beyond the limit":          {gateway, "256Mi", container("resources", "limits", "memory"), "GOMEMLIMIT is 460 MiB of 256"},
		"another image":                    {gateway, "tracker", container("image"), "compose builds no image tracker"},
		"another user":                     {gateway, 1000.0, append(spec, "securityContext", "runAsUser"), "the Dockerfile has no USER 1000"},
		"a number of gateways":             {gateway, 3.0, []any{"spec", "replicas"}, "the gateways' number is fixed"},
		"a variable that is not yet set":   {gateway, "OTHER", container("env", 0, "name"), "SWARMGATE_REDIS names REDIS_PASSWORD"},
		"a secret in the manifest":         {gateway, map[string]any{"name": "SWARMGATE_SECRET", "value": "0123456789abcdef"}, container("env", 3), "SWARMGATE_SECRET stands in the manifest"},
		"a key that nobody makes":          {redis, "password", container("env", 1, "valueFrom", "secretKeyRef", "key"), "the README makes no key password"},
		"settings that are not there":      {gateway, "settings", container("envFrom", 0, "configMapRef", "name"), "Deployment swarmgate takes variables from nowhere"},
		"a writable file system":           {redis, false, container("securityContext", "readOnlyRootFilesystem"), "StatefulSet swarmgate-redis is not confined"},
		"root":                             {redis, false, append(spec, "securityContext", "runAsNonRoot"), "StatefulSet swarmgate-redis is not confined"},
		"a capability":                     {gateway, []any{"NET_RAW"}, container("securityContext", "capabilities", "drop"), "Deployment swarmgate is not confined"},
		"no limit of memory":               {redis, nil, container("resources", "limits"), "StatefulSet swarmgate-redis: resources are"},
		"a script that is not there":       {redis, []any{"sh", "/swarmgate/start.sh"}, container("command"), "runs /swarmgate/start.sh, which is not there"},
		"a probe's script not there":       {redis, []any{"sh", "/ready.sh"}, container("readinessProbe", "exec", "command"), "runs /ready.sh, which is not there"},
		"a budget of no pods":              {budget, "tracker", []any{"spec", "selector", "matchLabels", "app.kubernetes.io/name"}, "PodDisruptionBudget swarmgate selects no pods"},
		"a budget of all pods":             {budget, 2.0, []any{"spec", "maxUnavailable"}, "PodDisruptionBudget swarmgate lets 2 of 2 go"},
		"a budget that blocks all":         {budget, 0.0, []any{"spec", "maxUnavailable"}, "PodDisruptionBudget swarmgate lets 0 of 2 go"},
		"a scaler of nothing":              {scaler, "StatefulSet", []any{"spec", "scaleTargetRef", "kind"}, "scales StatefulSet swarmgate, which is not there"},
		"one gateway":                      {scaler, 1.0, []any{"spec", "minReplicas"}, "HorizontalPodAutoscaler swarmgate scales to"},
		"a policy of no pods":              {policy, "tracker", []any{"spec", "podSelector", "matchLabels", "app.kubernetes.io/name"}, "NetworkPolicy swarmgate selects no pods"},
		"a policy of another port":         {policy, 6968.0, []any{"spec", "ingress", 0, "ports", 0, "port"}, "NetworkPolicy swarmgate: pods have no port 6968 of TCP"},
		"a way to another port of Redis":   {"NetworkPolicy swarmgate-to-redis", 6380.0, []any{"spec", "egress", 0, "ports", 0, "port"}, "NetworkPolicy swarmgate-to-redis: pods have no port 6380"},
		"a policy for one way alone":       {"NetworkPolicy swarmgate-redis", []any{"Ingress"}, []any{"spec", "policyTypes"}, "StatefulSet swarmgate-redis: no NetworkPolicy for Egress"},
		"more nodes than are joined":       {redis, 8.0, []any{"spec", "replicas"}, "the cluster is formed of"},
		"nodes of another service":         {redis, "swarmgate", []any{"spec", "serviceName"}, "names no headless service"},
		"no names before the cluster":      {"Service swarmgate-redis", false, []any{"spec", "publishNotReadyAddresses"}, "nodes have no names until"},
		"another Redis than in compose":    {redis, "redis:6", container("image"), "compose takes another Redis than redis:6"},
		"gateways that look elsewhere":     {gateway, "redis://:$(REDIS_PASSWORD)@redis:6379", container("env", 1, "value"), "the gateways look for Redis at redis:6379"},
		"a spread of other pods":           {redis, "swarmgate", append(spec, "topologySpreadConstraints", 0, "labelSelector", "matchLabels", "app.kubernetes.io/name"), "spreads other pods than its own"},
		"a token that is of no use":        {gateway, true, append(spec, "automountServiceAccountToken"), "holds a token"},
		"a field that Kubernetes has not":  {gateway, 1.0, container("images"), "unknown field"},
		"a password that is not in Secret": {redis, map[string]any{"name": "REDISCLI_AUTH", "value": "x"}, container("env", 1), "REDISCLI_AUTH stands in the manifest"},
	} {
		t.Run(what, func(t *testing.T) {
			objects := build(t, "redis-cluster")
			change(t, objects, c.object, c.value, c.path...)
			if flaws := o.check(t, objects); !strings.Contains(strings.Join(flaws, "\n"), c.want) {
				t.Errorf("no %q in %q", c.want, flaws)
			}
		})
	}
}

// The overlay that the README has operators write.
func TestTheOverlayOfTheREADME(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	var overlay strings.Builder
	for line := range strings.Lines(string(readme)) {
		if text, is := strings.CutPrefix(line, "    "); is && regexp.MustCompile(`^[a-zA-Z]+: `).MatchString(text) {
			overlay.WriteString(text)
		}
	}
	dir, err := os.MkdirTemp(".", "overlay-") // beside the others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(overlay.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	m, refused := decode(t, build(t, dir))
	d := m.deployments["swarmgate"]
	if len(refused) > 0 || d == nil {
		t.Fatalf("of\n%s\nare refused %q", &overlay, refused)
	}
	container := d.Spec.Template.Spec.Containers[0]
	c := checker{manifests: m}
	if v := c.variables(&container); v["SWARMGATE_INTERVAL"] != "20m" || v["SWARMGATE_LOG_FORMAT"] != "json" {
		t.Errorf("the gateway's variables are %v", v)
	}
	if container.Image != "REGISTRY/swarmgate:VERSION" || d.Namespace != "swarmgate" {
		t.Errorf("the image is %s, the namespace %s", container.Image, d.Namespace)
	}
}
