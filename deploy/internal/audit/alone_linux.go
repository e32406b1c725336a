package audit

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// alone is the environment variable of tests that have a network of their own.
const alone = "SWARMGATE_TEST_ALONE"

// MainAlone is Main in a network namespace of its own, where it is root, which can make one.
func MainAlone(m *testing.M) int {
	if os.Getenv(alone) != "" || os.Getuid() != 0 {
		return Main(m)
	}
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), alone+"=yes")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

// NeedAlone skips a test that is not alone in its network, or fails it under CI=true.
func NeedAlone(t testing.TB) {
	t.Helper()
	if os.Getenv(alone) != "" {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("it needs root, for network namespaces")
	}
	t.Skip("it needs root, for network namespaces")
}
