//go:build linux

package deploy

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"swarmgate/swarmstore/storetest"
)

// systemd takes the units as they are, and finds the service well locked up.
func TestSystemdUnits(t *testing.T) {
	analyze := storetest.Need(t, "systemd-analyze", "systemd")
	dir := t.TempDir()
	var units []string
	for _, shipped := range []string{"systemd/swarmgate.service", "systemd/swarmgate.socket", "anycast/swarmgate-anycast.service"} {
		unit, err := os.ReadFile(shipped)
		if err != nil {
			t.Fatal(err)
		}
		for _, program := range []string{"/usr/local/bin/swarmgate", "/usr/local/lib/swarmgate/healthcheck.sh", "/usr/sbin/birdc"} {
			unit = bytes.ReplaceAll(unit, []byte(program), []byte("/bin/true")) // a program that is there
		}
		path := filepath.Join(dir, filepath.Base(shipped))
		if err := os.WriteFile(path, unit, 0o600); err != nil {
			t.Fatal(err)
		}
		units = append(units, path)
	}
	// It says what it does not know or would ignore, and ends well all the same.
	out, err := exec.Command(analyze, append([]string{"verify", "--man=no"}, units...)...).CombinedOutput()
	if err != nil || strings.Contains(string(out), "swarmgate") {
		t.Errorf("%v: %s", err, out)
	}
	out, err = exec.Command(analyze, "security", "--offline=yes", "--threshold=20", units[0]).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "exposure level") {
		t.Errorf("the exposure is above 2.0 of 10, %v: %s", err, out)
	}
}

func TestTheEnvironmentFileHasFlagsOnly(t *testing.T) {
	env, err := os.ReadFile("systemd/swarmgate.env")
	if err != nil {
		t.Fatal(err)
	}
	help, err := exec.Command("go", "run", "../gateway", "--help").Output()
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`(?m)^#?SWARMGATE_([A-Z_]+)=`).FindAllSubmatch(env, -1)
	if len(names) < 3 {
		t.Errorf("it has %d variables", len(names))
	}
	for _, name := range names {
		if flag := "--" + strings.ReplaceAll(strings.ToLower(string(name[1])), "_", "-") + " "; !strings.Contains(string(help), flag) {
			t.Errorf("%s is of no flag", name[0])
		}
	}
}
