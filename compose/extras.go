package compose

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"k8s.io/apimachinery/pkg/util/validation"
)

// extras are engine settings that pods have no field for: annotations that Slipway's node agent obeys.
func (t *translation) extras(s *types.ServiceConfig, annotations map[string]string) {
	set := func(field, key, value string) {
		annotations[key] = value
		if !t.Slipway {
			t.note("%s has no counterpart on other clusters", field)
		}
	}
	for name, value := range s.Annotations {
		annotations[name] = value
	}
	t.labels(s.Labels, "labels", annotations)
	if s.Init != nil && *s.Init {
		set("init", annotationInit, "true")
	}
	if s.StopSignal != "" {
		set("stop_signal", annotationSignal, s.StopSignal)
	}
	pids := s.PidsLimit
	if s.Deploy != nil && s.Deploy.Resources.Limits != nil && s.Deploy.Resources.Limits.Pids > 0 {
		pids = s.Deploy.Resources.Limits.Pids
	}
	if pids > 0 {
		set("pids limit", annotationPids, strconv.FormatInt(pids, 10))
	}
	if s.CPUSet != "" {
		set("cpuset", annotationCPUSet, s.CPUSet)
	}
	var limits []string
	for _, name := range sortedNames(s.Ulimits) {
		u := s.Ulimits[name]
		soft, hard := u.Soft, u.Hard
		if u.Single != 0 {
			soft, hard = u.Single, u.Single
		}
		limits = append(limits, fmt.Sprintf("%s=%d:%d", name, soft, hard))
	}
	if len(limits) > 0 {
		set("ulimits", annotationUlimits, strings.Join(limits, ","))
	}
}

// labels become annotations: Docker's may hold anything, which labels of Kubernetes may not.
func (t *translation) labels(labels types.Labels, field string, annotations map[string]string) {
	for _, name := range sortedNames(labels) {
		if problems := validation.IsQualifiedName(strings.ToLower(name)); len(problems) > 0 {
			t.note("%s.%s is left out, since no annotation can be called so: %s", field, name, problems[0])
			continue
		}
		annotations[name] = labels[name]
	}
}

// refuse names every setting of the service that has no effect here.
func (t *translation) refuse(s *types.ServiceConfig) {
	for _, f := range append(noContainerSetting(s), noServiceSetting(s)...) {
		if f.set {
			t.note("%s is not supported and has no effect", f.name)
		}
	}
	for _, name := range sortedNames(s.Networks) {
		n := s.Networks[name]
		if n == nil {
			continue
		}
		if n.Ipv4Address != "" || n.Ipv6Address != "" || n.MacAddress != "" || len(n.LinkLocalIPs) > 0 {
			t.note("networks.%s: fixed addresses have no counterpart: addresses are the cluster's", name)
		}
		if len(n.DriverOpts) > 0 || n.InterfaceName != "" || n.Priority != 0 || n.GatewayPriority != 0 {
			t.note("networks.%s: driver_opts, interface_name and priorities have no counterpart: a pod has one interface", name)
		}
	}
	for _, p := range s.Ports {
		if p.Mode == "host" {
			t.note("ports: mode host of port %d is taken as ingress: the port leads to every replica", p.Target)
		}
	}
	if s.Deploy != nil {
		t.refuseDeploy(s.Deploy)
	}
}

// setting is one that may have been made.
type setting struct {
	name string
	set  bool
}

// noContainerSetting are those of the container that pods have no word for.
func noContainerSetting(s *types.ServiceConfig) []setting {
	return []setting{
		{"blkio_config", s.BlkioConfig != nil}, {"cgroup", s.Cgroup != ""}, {"cgroup_parent", s.CgroupParent != ""},
		{"cpu_count", s.CPUCount != 0}, {"cpu_percent", s.CPUPercent != 0},
		{"cpu_shares", s.CPUShares != 0}, {"cpu_quota", s.CPUQuota != 0}, {"cpu_period", s.CPUPeriod != 0},
		{"cpu_rt_period", s.CPURTPeriod != 0}, {"cpu_rt_runtime", s.CPURTRuntime != 0},
		{"credential_spec", s.CredentialSpec != nil}, {"device_cgroup_rules", len(s.DeviceCgroupRules) > 0},
		{"domainname", s.DomainName != ""}, {"gpus", len(s.Gpus) > 0},
		{"isolation", s.Isolation != ""}, {"logging", s.Logging != nil}, {"log_driver", s.LogDriver != ""}, {"log_opt", len(s.LogOpt) > 0},
		{"mac_address", s.MacAddress != ""}, {"mem_swappiness", s.MemSwappiness != 0}, {"memswap_limit", s.MemSwapLimit != 0},
		{"oom_kill_disable", s.OomKillDisable}, {"oom_score_adj", s.OomScoreAdj != 0}, {"runtime", s.Runtime != ""},
		{"storage_opt", len(s.StorageOpt) > 0}, {"umask", s.Umask != nil}, {"userns_mode", s.UserNSMode != ""}, {"uts", s.Uts != ""},
		{"volume_driver", s.VolumeDriver != ""},
		{"platform", s.Platform != "" && s.Build == nil},
	}
}

// noServiceSetting are those of the service.
func noServiceSetting(s *types.ServiceConfig) []setting {
	return []setting{
		{"external_links", len(s.ExternalLinks) > 0}, {"models", len(s.Models) > 0}, {"net", s.Net != ""},
		{"provider", s.Provider != nil}, {"develop", s.Develop != nil}, {"pre_start", len(s.PreStart) > 0},
		{"post_start", len(s.PostStart) > 0}, {"pre_stop", len(s.PreStop) > 0}, {"use_api_socket", s.UseAPISocket},
	}
}

func (t *translation) refuseDeploy(d *types.DeployConfig) {
	p := d.Placement
	present := []setting{
		{"placement", len(p.Constraints)+len(p.Preferences) > 0 || p.MaxReplicas != 0},
		{"endpoint_mode", d.EndpointMode != "" && d.EndpointMode != "vip"},
		{"rollback_config", d.RollbackConfig != nil},
	}
	if u := d.UpdateConfig; u != nil {
		present = append(present, setting{"update_config.monitor", u.Monitor != 0}, setting{"update_config.max_failure_ratio", u.MaxFailureRatio != 0})
	}
	if r := d.RestartPolicy; r != nil {
		present = append(present, setting{"restart_policy.delay", r.Delay != nil}, setting{"restart_policy.window", r.Window != nil})
	}
	if r := d.Resources.Reservations; r != nil {
		present = append(present, setting{"resources.reservations.devices", len(r.Devices) > 0},
			setting{"resources.reservations.generic_resources", len(r.GenericResources) > 0})
	}
	for _, f := range present {
		if f.set {
			t.note("deploy.%s is not supported and has no effect", f.name)
		}
	}
}
