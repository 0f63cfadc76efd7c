package compose

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
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

// refuse names every setting of the service that has no effect here.
func (t *translation) refuse(s *types.ServiceConfig) {
	present := []struct {
		field string
		set   bool
	}{
		{"blkio_config", s.BlkioConfig != nil}, {"cgroup_parent", s.CgroupParent != ""}, {"cpu_shares", s.CPUShares != 0},
		{"cpu_quota", s.CPUQuota != 0}, {"cpu_period", s.CPUPeriod != 0}, {"cpu_rt_runtime", s.CPURTRuntime != 0},
		{"credential_spec", s.CredentialSpec != nil}, {"device_cgroup_rules", len(s.DeviceCgroupRules) > 0},
		{"devices", len(s.Devices) > 0}, {"domainname", s.DomainName != ""}, {"gpus", len(s.Gpus) > 0},
		{"isolation", s.Isolation != ""}, {"logging", s.Logging != nil}, {"mac_address", s.MacAddress != ""},
		{"mem_swappiness", s.MemSwappiness != 0}, {"memswap_limit", s.MemSwapLimit != 0},
		{"oom_kill_disable", s.OomKillDisable}, {"oom_score_adj", s.OomScoreAdj != 0}, {"runtime", s.Runtime != ""},
		{"storage_opt", len(s.StorageOpt) > 0}, {"userns_mode", s.UserNSMode != ""}, {"uts", s.Uts != ""},
		{"volumes_from", len(s.VolumesFrom) > 0}, {"external_links", len(s.ExternalLinks) > 0}, {"models", len(s.Models) > 0},
		{"provider", s.Provider != nil}, {"develop", s.Develop != nil}, {"pre_start", len(s.PreStart) > 0},
		{"post_start", len(s.PostStart) > 0}, {"pre_stop", len(s.PreStop) > 0}, {"use_api_socket", s.UseAPISocket},
		{"platform", s.Platform != "" && s.Build == nil},
	}
	for _, p := range present {
		if p.set {
			t.note("%s is not supported and has no effect", p.field)
		}
	}
	for _, name := range sortedNames(s.Networks) {
		if n := s.Networks[name]; n != nil && (n.Ipv4Address != "" || n.Ipv6Address != "" || n.MacAddress != "" || len(n.LinkLocalIPs) > 0) {
			t.note("networks.%s: fixed addresses have no counterpart: addresses are the cluster's", name)
		}
	}
	if s.Deploy != nil && (len(s.Deploy.Placement.Constraints) > 0 || len(s.Deploy.Placement.Preferences) > 0) {
		t.note("deploy.placement is not supported and has no effect")
	}
}
