package e2e

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"gancho/pkg/service"
	"gancho/services/dispatcher"
	"gancho/services/management"
	"gancho/services/publisher"
	monitor "gancho/services/suspension-monitor"
)

// The installations that the tests look at.
const (
	composeFile = "docker-compose.yml"
	clusterFile = "deploy/cluster/docker-compose.yml"
)

// compose is what the tests look at of one of them; anchors, merges and extends are resolved.
type compose struct {
	file     string
	Services map[string]*composeService `yaml:"services"`
	Networks map[string]struct {
		Internal   bool              `yaml:"internal"`
		DriverOpts map[string]string `yaml:"driver_opts"`
		IPAM       struct {
			Config []struct {
				Subnet string `yaml:"subnet"`
			} `yaml:"config"`
		} `yaml:"ipam"`
	} `yaml:"networks"`
	Volumes map[string]any `yaml:"volumes"`
}

type composeService struct {
	Image         string             `yaml:"image"`
	ContainerName string             `yaml:"container_name"`
	Build         *composeBuild      `yaml:"build"`
	User          string             `yaml:"user"`
	Privileged    bool               `yaml:"privileged"`
	ReadOnly      bool               `yaml:"read_only"`
	CapDrop       []string           `yaml:"cap_drop"`
	CapAdd        []string           `yaml:"cap_add"`
	SecurityOpt   []string           `yaml:"security_opt"`
	Tmpfs         []string           `yaml:"tmpfs"`
	MemLimit      string             `yaml:"mem_limit"`
	PidsLimit     int                `yaml:"pids_limit"`
	Restart       string             `yaml:"restart"`
	StopGrace     string             `yaml:"stop_grace_period"`
	Ports         []string           `yaml:"ports"`
	Networks      attached           `yaml:"networks"`
	NetworkMode   string             `yaml:"network_mode"`
	PID           string             `yaml:"pid"`
	IPC           string             `yaml:"ipc"`
	Volumes       []string           `yaml:"volumes"`
	Environment   map[string]*string `yaml:"environment"`
	EnvFile       any                `yaml:"env_file"`
	Healthcheck   struct {
		Test    []string `yaml:"test"`
		Disable bool     `yaml:"disable"`
	} `yaml:"healthcheck"`
	Profiles []string `yaml:"profiles"`
	Deploy   struct {
		Replicas int `yaml:"replicas"`
	} `yaml:"deploy"`
}

// attached are the names of networks, written as a list or, with addresses, as a map.
type attached []string

func (a *attached) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.MappingNode {
		var all map[string]any
		err := n.Decode(&all)
		*a = slices.Sorted(maps.Keys(all))
		return err
	}
	return n.Decode((*[]string)(a))
}

type composeBuild struct {
	Context    string            `yaml:"context"`
	Dockerfile string            `yaml:"dockerfile"`
	Args       map[string]string `yaml:"args"`
}

func root(elem ...string) string { return filepath.Join(append([]string{"..", ".."}, elem...)...) }

// eachCompose runs a test on each of the files.
func eachCompose(t *testing.T, test func(t *testing.T, c compose)) {
	t.Parallel()
	for _, file := range []string{composeFile, clusterFile} {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			test(t, readCompose(t, file))
		})
	}
}

func readCompose(t *testing.T, file string) compose {
	t.Helper()
	c := compose{file: file}
	remarshal(t, extended(t, file), &c)
	if len(c.Services) < 7 {
		t.Fatalf("%s has %d services", file, len(c.Services))
	}
	return c
}

func remarshal(t *testing.T, from, to any) {
	t.Helper()
	text, err := yaml.Marshal(from)
	must(t, "encode", err)
	must(t, "decode", yaml.Unmarshal(text, to))
}

// extended reads a file and completes each service that extends one of another file, as Compose does: maps
// are merged, lists are joined, and what is marked !override stands alone.
func extended(t *testing.T, file string) map[string]any {
	t.Helper()
	text, err := os.ReadFile(root(file))
	must(t, file, err)
	var doc yaml.Node
	var out struct {
		Services map[string]map[string]any `yaml:"services"`
		Rest     map[string]any            `yaml:",inline"`
	}
	must(t, file, yaml.Unmarshal(text, &doc))
	must(t, file, doc.Decode(&out))
	for name, service := range out.Services {
		from, ok := service["extends"].(map[string]any)
		if !ok {
			continue
		}
		at, what := fmt.Sprint(from["file"]), fmt.Sprint(from["service"])
		others, ok := extended(t, filepath.Join(filepath.Dir(file), at))["services"].(map[string]map[string]any)
		base := others[what]
		if !ok || base == nil {
			t.Fatalf("%s: %s extends %s of %s, which is not there", file, name, what, at)
		}
		delete(service, "extends")
		out.Services[name] = merge(base, service, child(child(doc.Content[0], "services"), name))
	}
	all := out.Rest
	all["services"] = out.Services
	return all
}

// child returns the value of a key of a mapping.
func child(n *yaml.Node, key string) *yaml.Node {
	for i := 0; n != nil && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

func merge(base, over map[string]any, node *yaml.Node) map[string]any {
	out := maps.Clone(base)
	for key, value := range over {
		written := child(node, key)
		if written == nil || written.Tag != "!override" {
			switch v := value.(type) {
			case map[string]any:
				if was, ok := base[key].(map[string]any); ok {
					value = merge(was, v, written)
				}
			case []any:
				if was, ok := base[key].([]any); ok {
					value = append(slices.Clone(was), v...)
				}
			}
		}
		out[key] = value
	}
	return out
}

// role is what a service is: nats-1, nats-2 and nats are nats.
func role(service string) string { return strings.TrimRight(service, "-123456789") }

// own are the services that run our images.
var own = []string{"publisher", "dispatcher", "suspension-monitor", "management"}

func TestComposeIsHardened(t *testing.T) { eachCompose(t, testComposeIsHardened) }

// holes are members that give a container more of the host, whatever else is set.
var holes = []string{
	"devices", "device_cgroup_rules", "gpus", "userns_mode", "uts", "cgroup", "cgroup_parent", "sysctls", "volumes_from", "group_add", "runtime",
	"credential_spec", "oom_kill_disable", "oom_score_adj", "links", "external_links",
}

func testComposeIsHardened(t *testing.T, c compose) {
	var members struct {
		Services map[string]map[string]any `yaml:"services"`
	}
	remarshal(t, extended(t, c.file), &members)
	for name, service := range members.Services {
		for _, hole := range holes {
			if _, there := service[hole]; there {
				t.Errorf("%s: %s is set", name, hole)
			}
		}
	}
	for name, s := range c.Services {
		check := func(ok bool, what string) {
			t.Helper()
			if !ok {
				t.Errorf("%s: %s", name, what)
			}
		}
		check(s.ReadOnly, "read_only is not set")
		check(slices.Equal(s.CapDrop, []string{"ALL"}), "cap_drop is not [ALL]")
		check(len(s.CapAdd) == 0 && !s.Privileged, "it gets capabilities back")
		check(slices.Equal(s.SecurityOpt, []string{"no-new-privileges:true"}), "security_opt is not [no-new-privileges:true]")
		check(s.PID == "" && s.IPC == "" && s.NetworkMode != "host", "it shares a namespace with the host")
		check(s.MemLimit != "", "mem_limit is not set")
		check(s.PidsLimit > 0 && s.PidsLimit <= 256, "pids_limit is not from 1 to 256")
		check(s.StopGrace == "30s", "stop_grace_period is not 30s")
		check(s.User != "root" && s.User != "0" && !strings.HasPrefix(s.User, "0:"), "it runs as root")
		check(s.EnvFile == nil, "env_file would hand every password to it")
		check(len(s.Tmpfs) == 1 && strings.HasPrefix(s.Tmpfs[0], "/tmp:size="), "/tmp is not a bounded tmpfs")
		check(s.Healthcheck.Disable || len(s.Healthcheck.Test) > 0, "no health check")
		check(s.Healthcheck.Disable == (s.Restart == "no"), "only what runs once has no health check")
		check(s.ContainerName == "", "container_name keeps it from being scaled")
		for _, port := range s.Ports {
			check(strings.HasPrefix(port, "127.0.0.1:"), "port "+port+" is published beyond this machine")
		}
		for _, v := range s.Volumes {
			source, _, _ := strings.Cut(v, ":")
			check(!strings.Contains(source, "docker.sock"), "the Docker socket is mounted")
			check(!strings.HasPrefix(source, ".") || strings.HasSuffix(v, ":ro"), "the host's "+source+" is mounted writable")
			check(strings.Trim(source, "./") != "", "the host's "+source+" is mounted, and with it .env and its passwords")
		}
	}
}

func TestComposeImages(t *testing.T) { eachCompose(t, testComposeImages) }

func testComposeImages(t *testing.T, c compose) {
	pinned := regexp.MustCompile(`^[a-z/]+:v?\d+\.\d+\.\d+(-alpine)?$`)
	for name, s := range c.Services {
		if s.Build == nil {
			if !pinned.MatchString(s.Image) {
				t.Errorf("%s: image %s is not pinned to a version", name, s.Image)
			}
			continue
		}
		program := name
		if name == "setup" {
			program = "gancho"
		}
		if s.Build.Dockerfile != "deploy/Dockerfile" || s.Build.Args["SERVICE"] != program {
			t.Errorf("%s: built from %s with SERVICE %q, want deploy/Dockerfile and %q", name, s.Build.Dockerfile, s.Build.Args["SERVICE"], program)
		}
	}
}

func TestComposeNetworks(t *testing.T) { eachCompose(t, testComposeNetworks) }

func testComposeNetworks(t *testing.T, c compose) {
	if !c.Networks["backplane"].Internal {
		t.Error("backplane is not internal: every container could reach out")
	}
	if c.Networks["edge"].DriverOpts["com.docker.network.bridge.enable_ip_masquerade"] != "false" {
		t.Error("edge translates addresses: what publishes a port could reach out")
	}
	for name, s := range c.Services {
		if slices.Contains(s.Networks, "egress") != (name == "dispatcher") {
			t.Errorf("%s: networks %v; egress is for the dispatcher, and only for it", name, s.Networks)
		}
		published := slices.Contains(s.Networks, "edge")
		if published != (len(s.Ports) > 0) {
			t.Errorf("%s: ports %v on networks %v; edge is for what publishes a port", name, s.Ports, s.Networks)
		}
		if published && len(s.Profiles) == 0 && name != "management" && role(name) != "nats" {
			t.Errorf("%s publishes a port", name)
		}
	}
	for _, name := range own {
		s := c.Services[name]
		if s == nil {
			t.Errorf("service %s is missing", name)
			continue
		}
		if !slices.Equal(s.Healthcheck.Test, []string{"CMD", "/service", "healthcheck"}) {
			t.Errorf("%s: health check %v, want the program's own", name, s.Healthcheck.Test)
		}
		for _, port := range s.Ports {
			if strings.HasSuffix(port, ":9090") {
				t.Errorf("%s publishes its ops port", name)
			}
		}
	}
}

// TestComposeSecrets: each service gets the passwords of its own users, the encryption key where webhooks'
// secrets are opened or sealed, and the API tokens where they are checked.
func TestComposeSecrets(t *testing.T) { eachCompose(t, testComposeSecrets) }

func testComposeSecrets(t *testing.T, c compose) {
	value := func(s *composeService, name string) string {
		if v := s.Environment[name]; v != nil {
			return *v
		}
		return ""
	}
	password := regexp.MustCompile(`\$\{((?:NATS|REDIS)_PASSWORD_[A-Z_]+|GRAFANA_PASSWORD)(:\?run deploy/env[^}]*)?\}`)
	users := map[string][]string{
		"publisher":          {"NATS_PASSWORD_PUBLISHER"},
		"dispatcher":         {"NATS_PASSWORD_DISPATCHER"},
		"suspension-monitor": {"NATS_PASSWORD_SUSPENSION_MONITOR", "REDIS_PASSWORD_MONITOR"},
		"management":         {"NATS_PASSWORD_MANAGEMENT", "REDIS_PASSWORD_MANAGEMENT"},
		"gancho":             {"NATS_PASSWORD_OPERATOR", "REDIS_PASSWORD_MANAGEMENT"}, // the doctor asks Redis
	}
	files := map[string][]string{ // that name what a container gets
		"nats":  {"deploy/nats/nats.conf", "deploy/nats/accounts.conf"},
		"redis": {"deploy/redis/start.sh", "deploy/redis/users.acl"},
	}
	if c.file == clusterFile {
		users["suspension-monitor"] = []string{"NATS_PASSWORD_SUSPENSION_MONITOR", "REDIS_PASSWORD_LOOKUP", "REDIS_PASSWORD_MONITOR"}
		users["management"] = []string{"NATS_PASSWORD_MANAGEMENT", "REDIS_PASSWORD_LOOKUP", "REDIS_PASSWORD_MANAGEMENT"}
		users["gancho"] = []string{"NATS_PASSWORD_OPERATOR", "REDIS_PASSWORD_LOOKUP", "REDIS_PASSWORD_MANAGEMENT"}
		files["nats"][0] = "deploy/cluster/nats/nats.conf"
		files["redis"] = append(files["redis"], "deploy/cluster/redis/redis.sh", "deploy/cluster/redis/users.acl")
		files["sentinel"] = []string{"deploy/cluster/redis/sentinel.sh"}
	}
	for name, s := range c.Services {
		var got []string
		for variable := range s.Environment {
			for _, m := range password.FindAllStringSubmatch(value(s, variable), -1) {
				got = append(got, m[1])
				if m[2] == "" {
					t.Errorf("%s: Compose starts without %s instead of naming deploy/env", name, m[1])
				}
			}
			if strings.Contains(value(s, variable), "_PASSWORD") && !password.MatchString(value(s, variable)) {
				t.Errorf("%s: %s has a password that is not from .env", name, variable)
			}
		}
		slices.Sort(got)
		got = slices.Compact(got)
		if want, isOwn := users[name]; isOwn && !slices.Equal(got, want) {
			t.Errorf("%s: gets the passwords %v, want %v", name, got, want)
		}
		var secrets []string
		for _, v := range s.Volumes {
			if source, _, _ := strings.Cut(v, ":"); source == "encryption-key" || source == "api-tokens" {
				secrets = append(secrets, source)
				if name != "setup" && !strings.HasSuffix(v, ":ro") {
					t.Errorf("%s: %s is mounted writable", name, source)
				}
			}
		}
		var want []string
		switch name {
		case "setup", "management", "gancho":
			want = []string{"encryption-key", "api-tokens"}
		case "dispatcher":
			want = []string{"encryption-key"}
		}
		if !slices.Equal(secrets, want) {
			t.Errorf("%s: mounts the secrets %v, want %v", name, secrets, want)
		}
	}

	// The broker and Redis get every variable that their configuration names, and no other password.
	named := regexp.MustCompile(`(NATS|REDIS)_[A-Z_]+[A-Z]`)
	inner := []string{"NATS_PASSWORD", "REDIS_PASSWORD", "REDIS_MORE_USERS", "REDIS_MORE_CONF"} // of the scripts among themselves
	for name, s := range c.Services {
		if files[role(name)] == nil {
			continue
		}
		var known []string
		for _, file := range files[role(name)] {
			text, err := os.ReadFile(root(file))
			must(t, file, err)
			for _, variable := range named.FindAllString(string(text), -1) {
				known = append(known, variable)
				if _, ok := s.Environment[variable]; !ok && !slices.Contains(inner, variable) {
					t.Errorf("%s names %s, which %s does not give to %s", file, variable, c.file, name)
				}
			}
		}
		for variable := range s.Environment {
			if strings.Contains(variable, "_PASSWORD_") && !slices.Contains(known, variable) {
				t.Errorf("%s gets %s, which nothing of its configuration names", name, variable)
			}
		}
	}
}

// TestComposePassesSettings: every variable of a service can be set from .env, and no container gets one
// that its service does not read.
func TestComposePassesSettings(t *testing.T) { eachCompose(t, testComposePassesSettings) }

func testComposePassesSettings(t *testing.T, c compose) {
	// The Go runtime and OpenTelemetry read these by themselves.
	foreign := []string{"GOGC", "GOMEMLIMIT", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS"}
	for name, config := range map[string]any{
		"publisher": publisher.Config{}, "dispatcher": dispatcher.Config{}, "suspension-monitor": monitor.Config{}, "management": management.Config{},
	} {
		var known []string
		for _, f := range service.Fields(config) {
			known = append(known, f.Var)
			if _, passed := c.Services[name].Environment[f.Var]; !passed {
				t.Errorf("%s: %s is a setting of the service, but %s does not pass it on", name, f.Var, c.file)
			}
		}
		for variable := range c.Services[name].Environment {
			if !slices.Contains(known, variable) && !slices.Contains(foreign, variable) {
				t.Errorf("%s: gets %s, which it does not read", name, variable)
			}
		}
		if !slices.Contains(c.Services[name].Volumes, "./deploy/files/"+name+":/files:ro") {
			t.Errorf("%s: the files that its variables may name are not mounted", name)
		}
	}
}

// TestClusterIsOne: every service runs twice or more, knows all the servers, and asks for three replicas.
func TestClusterIsOne(t *testing.T) {
	t.Parallel()
	c := readCompose(t, clusterFile)
	count := map[string]int{}
	for name := range c.Services {
		count[role(name)]++
	}
	if count["nats"] != 3 || count["redis"] < 2 || count["sentinel"] != 3 {
		t.Errorf("%v; want three NATS servers, two Redis and three Sentinels", count)
	}
	for _, name := range own {
		s := c.Services[name]
		if s.Deploy.Replicas < 2 {
			t.Errorf("%s runs %d times", name, s.Deploy.Replicas)
		}
		if v := s.Environment["STREAM_REPLICAS"]; v == nil || *v != "3" {
			t.Errorf("%s: STREAM_REPLICAS is not 3", name)
		}
		for variable, servers := range map[string][]string{"NATS_URL": {"@nats-1:4222", "@nats-2:4222", "@nats-3:4222"}, "REDIS_URL": {"68.21,${SUBNETS:-10.231}.68.22,${SUBNETS:-10.231}.68.23/0?master_name=gancho"}} {
			v := s.Environment[variable]
			for _, server := range servers {
				if v != nil && !strings.Contains(*v, server) {
					t.Errorf("%s: %s does not name %s", name, variable, server)
				}
			}
		}
		if s.Environment["NATS_URL"] == nil {
			t.Errorf("%s: no NATS_URL", name)
		}
	}
	folders, err := os.ReadFile(root("deploy", "Dockerfile"))
	must(t, "Dockerfile", err)
	for name, s := range c.Services {
		for _, v := range s.Volumes {
			source, target, _ := strings.Cut(v, ":")
			if name == "setup" && !strings.Contains(string(folders), "/out/root"+target) {
				t.Errorf("setup: %s is mounted on %s, which its image does not have: nobody but root could write to it", source, target)
			}
			if strings.HasSuffix(source, "-data") && role(name) != "setup" && strings.HasPrefix(source, role(name)) && source != name+"-data" {
				t.Errorf("%s has the data of another: %s", name, source)
			}
		}
	}
}

func TestDockerfile(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(root("deploy", "Dockerfile"))
	must(t, "Dockerfile", err)
	for _, want := range []string{
		"\nFROM --platform=$BUILDPLATFORM golang:${GO_VERSION}-alpine AS builder\n", "\nFROM scratch\n", "\nUSER 65532:65532\n",
		`HEALTHCHECK --interval=5s --timeout=4s --start-period=30s --retries=3 CMD ["/service", "healthcheck"]`,
		"ca-certificates.crt", "CGO_ENABLED=0",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("deploy/Dockerfile lacks %q", want)
		}
	}
	if !regexp.MustCompile(`(?m)^ARG GO_VERSION=\d+\.\d+\.\d+$`).Match(text) {
		t.Error("deploy/Dockerfile does not pin Go to a patch release")
	}
}

// TestComposeAddresses: every installation's networks have addresses of their own, so that both can run and settings
// can name them.
func TestComposeAddresses(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for _, file := range []string{composeFile, clusterFile} {
		for name, network := range readCompose(t, file).Networks {
			if len(network.IPAM.Config) != 1 || !strings.HasPrefix(network.IPAM.Config[0].Subnet, "${SUBNETS:-10.231}.") {
				t.Errorf("%s: network %s: %+v; want one subnet below SUBNETS", file, name, network.IPAM)
				continue
			}
			subnet := network.IPAM.Config[0].Subnet
			if other, ok := seen[subnet]; ok {
				t.Errorf("%s: network %s has the addresses of %s", file, name, other)
			}
			seen[subnet] = file + " " + name
		}
	}
}

// TestPasswordsAreRandom: deploy/env writes every variable that Compose insists on, differently each time, and leaves
// alone what is there.
func TestPasswordsAreRandom(t *testing.T) {
	t.Parallel()
	insists := regexp.MustCompile(`\$\{([A-Z_]+):\?`)
	for _, file := range []string{composeFile, clusterFile} {
		text, err := os.ReadFile(root(file))
		must(t, file, err)
		runs := []map[string]string{{}, {}}
		for i := range runs {
			folder := t.TempDir()
			must(t, "copy", os.WriteFile(filepath.Join(folder, "docker-compose.yml"), text, 0o600))
			must(t, ".env", os.WriteFile(filepath.Join(folder, ".env"), []byte("LOG_LEVEL=debug\nNATS_PASSWORD_CRM=mine"), 0o600))
			for range 2 {
				out, err := exec.Command("/bin/sh", root("deploy", "env"), folder).CombinedOutput()
				must(t, "deploy/env: "+string(out), err)
			}
			written, err := os.ReadFile(filepath.Join(folder, ".env"))
			must(t, ".env", err)
			for line := range strings.Lines(string(written)) {
				name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
				if _, twice := runs[i][name]; twice {
					t.Errorf("%s is there twice", name)
				}
				runs[i][name] = value
			}
			if runs[i]["LOG_LEVEL"] != "debug" || runs[i]["NATS_PASSWORD_CRM"] != "mine" {
				t.Errorf("what was there changed: %v", runs[i])
			}
		}
		for _, m := range insists.FindAllStringSubmatch(string(text), -1) {
			one, other := runs[0][m[1]], runs[1][m[1]]
			if m[1] != "NATS_PASSWORD_CRM" && (len(one) < 32 || one == other) {
				t.Errorf("%s: %s is not random: %d characters", file, m[1], len(one))
			}
		}
	}
}
