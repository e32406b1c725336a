//go:build linux

//lint:file-ignore SA1019 every Grafana reads the older kind of dashboard from a file

package deploy

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"

	"swarmgate/swarmstore/storetest"
)

// readDashboard as Grafana's own types do, which take no field that they do not know and want all that they need.
func readDashboard(t *testing.T) *dashboard.Dashboard {
	t.Helper()
	known := cog.NewRuntime()
	known.RegisterDataqueryVariant(prometheus.VariantConfig())
	known.RegisterPanelcfgVariant(stat.VariantConfig())
	known.RegisterPanelcfgVariant(timeseries.VariantConfig())
	b, err := os.ReadFile("observability/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	// An error without text is none, and leaves out panels.
	if err := new(dashboard.Dashboard).UnmarshalJSONStrict(b); err != nil && err.Error() != "" {
		t.Fatal(err)
	}
	var d dashboard.Dashboard
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	return &d
}

// queries of the dashboard by panel, as Prometheus gets them from it.
func queries(t *testing.T, d *dashboard.Dashboard) map[string][]string {
	t.Helper()
	of := map[string][]string{}
	for _, p := range d.Panels {
		if p.Panel == nil {
			continue
		}
		for _, target := range p.Panel.Targets {
			q, ok := target.(*prometheus.Dataquery)
			if !ok {
				t.Fatalf("%s asks %T", *p.Panel.Title, target)
			}
			of[*p.Panel.Title] = append(of[*p.Panel.Title], strings.ReplaceAll(q.Expr, "$__rate_interval", "1m"))
		}
	}
	return of
}

func TestDashboard(t *testing.T) {
	d := readDashboard(t)
	if err := d.Validate(); err != nil {
		t.Error(err)
	}
	ids, taken := map[uint32]bool{}, map[[2]uint32]string{}
	lie := func(title string, id *uint32, at *dashboard.GridPos) {
		if ids[*id] {
			t.Errorf("%s has the id of another panel", title)
		}
		ids[*id] = true
		for x := at.X; x < at.X+at.W; x++ {
			for y := at.Y; y < at.Y+at.H; y++ {
				if other := taken[[2]uint32{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%s lies on %q or beyond the edge", title, other)
				}
				taken[[2]uint32{x, y}] = title
			}
		}
	}
	for _, p := range d.Panels {
		if p.RowPanel != nil {
			lie(*p.RowPanel.Title, &p.RowPanel.Id, p.RowPanel.GridPos)
			continue
		}
		lie(*p.Panel.Title, p.Panel.Id, p.Panel.GridPos)
		if p.Panel.Datasource == nil || *p.Panel.Datasource.Uid != "${datasource}" {
			t.Errorf("%s asks another data source than is chosen", *p.Panel.Title)
		}
	}
	if n := len(queries(t, d)); n < 20 {
		t.Errorf("%d panels ask something", n)
	}
}

// prometheusServer is one that observability.yml has brought up.
type prometheusServer struct {
	project
	url string // on the loopback address
}

func (p *project) startPrometheus() *prometheusServer {
	p.Helper()
	s := &prometheusServer{project: *p, url: fmt.Sprintf("http://127.0.0.1:%d", p.port+2)}
	s.files, s.name = []string{"deploy/compose/observability.yml"}, p.name+"-observability"
	s.env = append(slices.Clone(p.env), fmt.Sprintf("PROMETHEUS_PORT=%d", p.port+2))
	s.Cleanup(s.goneAfterDown)
	for _, args := range [][]string{{"check", "config", "/etc/prometheus/prometheus.yml"}, {"test", "rules", "/etc/prometheus/alerts_test.yml"}} {
		s.do(append([]string{"run", "--rm", "--no-deps", "--entrypoint", "promtool", "prometheus"}, args...)...)
	}
	s.do("up", "-d", "prometheus") // Grafana's image is not everywhere where tests run
	return s
}

// series is a line of an answer, without its value.
type series struct {
	Metric map[string]string `json:"metric"`
	Value  [2]any            `json:"value"`
}

func (s *prometheusServer) get(path string, data any) error {
	client := http.Client{Timeout: 10 * time.Second}
	response, err := client.Get(s.url + path)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", path, response.Status, b)
	}
	return json.Unmarshal(b, &struct{ Data any }{data})
}

func (s *prometheusServer) query(expr string) (found []series, err error) {
	var data struct{ Result []series }
	err = s.get("/api/v1/query?query="+url.QueryEscape(expr), &data)
	return data.Result, err
}

// sees waits until it has found the gateways with these admin ports.
func (s *prometheusServer) sees(ports []int) {
	for _, port := range ports {
		storetest.Eventually(s, time.Minute, func() error {
			found, err := s.query(fmt.Sprintf(`up{job="swarmgate",instance="127.0.0.1:%d"} == 1`, port))
			if err == nil && len(found) != 1 {
				err = fmt.Errorf("the gateway with admin port %d was not found", port)
			}
			return err
		})
	}
}

// alerts waits until it has seen an alert, which may have to last before it fires.
func (s *prometheusServer) alerts(name, labels string) {
	s.Helper()
	storetest.Eventually(s, time.Minute, func() error {
		expr := fmt.Sprintf("max_over_time(ALERTS{alertname=%q,%s}[10m])", name, labels)
		found, err := s.query(expr)
		if err == nil && len(found) == 0 {
			all, _ := s.query("max_over_time(ALERTS[10m])")
			err = fmt.Errorf("%s was not seen, but %v", expr, all)
		}
		return err
	})
}

// seesRefusals waits until it has seen that announces are refused.
func (s *prometheusServer) seesRefusals() {
	s.alerts("SwarmgateAnnouncesRefused", `result="unavailable"`)
}

// saw checks what Prometheus saw of a project whose gateways came, went, and lost a master.
func (s *prometheusServer) saw(p *project, left []int) {
	s.T = p.T
	var rules struct {
		Groups []struct {
			Rules []struct{ Name, Query, Health, LastError string }
		}
	}
	storetest.Eventually(s, time.Minute, func() error {
		if err := s.get("/api/v1/rules", &rules); err != nil {
			return err
		}
		for _, r := range rules.Groups[0].Rules {
			if r.Health != "ok" {
				return fmt.Errorf("%s is %s: %s", r.Name, r.Health, r.LastError)
			}
		}
		return nil
	})

	// The metrics that it asks for are those of a gateway.
	_, text, err := get("127.0.0.1", p.readyAdmins()[0], "/metrics")
	if err != nil {
		s.Fatal(err)
	}
	real := regexp.MustCompile(`(?m)^[a-z_]+`).FindAllString(text, -1)
	check := func(where, expr string) {
		for _, name := range regexp.MustCompile(`\b(swarmgate|go|process)_[a-z_]+`).FindAllString(expr, -1) {
			if !slices.Contains(real, name) {
				s.Errorf("%s asks for %s, which no gateway has", where, name)
			}
		}
	}
	for _, r := range rules.Groups[0].Rules {
		check(r.Name, r.Query)
	}
	for title, exprs := range queries(s.T, readDashboard(s.T)) {
		for _, expr := range exprs {
			check(title, expr)
			storetest.Eventually(s, time.Minute, func() error {
				found, err := s.query(expr)
				if err == nil && len(found) == 0 {
					err = fmt.Errorf("%s: no series for %s", title, expr)
				}
				return err
			})
		}
	}

	for _, port := range p.readyAdmins() {
		s.alerts("SwarmgateRedisUnreachable", fmt.Sprintf(`instance="127.0.0.1:%d"`, port))
	}
	for _, port := range left {
		s.alerts("SwarmgateGatewayDown", fmt.Sprintf(`instance="127.0.0.1:%d"`, port))
	}
}
