package compose

// wrongFiles are Compose files with a mistake each, and the error that a person gets. Where "other cluster" is in the
// name, the file is meant for one.
var wrongFiles = []struct{ name, file, want string }{
	{
		"no file at all",
		"",
		"no compose.yaml in DIR or above: write one, or name one with -f",
	},
	{
		"not YAML",
		"services: [",
		"DIR/compose.yaml: yaml: while parsing a flow node at line 1: did not find expected node content",
	},
	{
		"not a mapping",
		"just text",
		"DIR/compose.yaml: yaml: construct errors:\n  line 1: cannot construct !!str `just text` into cli.named",
	},
	{
		"no services",
		"name: x\n",
		"DIR/compose.yaml: no service is selected: check services and --profile",
	},
	{
		"services is a list",
		"services: [web]",
		"DIR/compose.yaml: services must be a mapping",
	},
	{
		"unknown key of a service",
		"services: {web: {image: a, imagee: b}}",
		"validating DIR/compose.yaml: services.web.imagee: there is no such key: is it misspelt?",
	},
	{
		"unknown key at the top",
		"service: {web: {image: a}}",
		"validating DIR/compose.yaml:  additional properties 'service' not allowed",
	},
	{
		"neither image nor build",
		"services: {web: {ports: ['80:80']}}",
		"DIR/compose.yaml: service \"web\" has neither an image nor a build context specified: invalid compose project",
	},
	{
		"a variable that must be set",
		"services: {web: {image: 'a:${TAG:?set TAG to the version}'}}",
		"DIR/compose.yaml: error while interpolating services.web.image: required variable TAG is missing a value: set TAG to the version",
	},
	{
		"broken interpolation",
		"services: {web: {image: 'a:${TAG'}}",
		"DIR/compose.yaml: invalid interpolation format for services.web.image.\nYou may need to escape any $ with another $.\na:${TAG",
	},
	{
		"port out of range",
		"services: {web: {image: a, ports: ['70000:80']}}",
		"DIR/compose.yaml: invalid hostPort: 70000",
	},
	{
		"port that is no number",
		"services: {web: {image: a, ports: ['http:80']}}",
		"DIR/compose.yaml: invalid hostPort: http",
	},
	{
		"a free port on one address",
		"services: {web: {image: a, ports: ['127.0.0.1::80']}}",
		"service \"web\": ports 127.0.0.1::80: a port that is chosen freely is open on every address: give it a number, such as 127.0.0.1:8080:80",
	},
	{
		"a name that two objects need",
		"services: {web: {image: a, ports: ['80:80']}, web-published: {image: a}}",
		"services \"web\" and \"web-published\": both need a Service called web-published: rename one",
	},
	{
		"two volumes of one legal name",
		"services: {web: {image: a, volumes: ['my_data:/a', 'my-data:/b']}}\nvolumes: {my_data: {}, my-data: {}}",
		"two names become PersistentVolumeClaim my-data, since names are DNS labels: rename one",
	},
	{
		"a name that no label holds",
		"services: {_db: {image: a}}",
		"service \"_db\": its pods are labelled with its name, and a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
	},
	{
		"a volume of one letter",
		"services: {web: {image: a, volumes: ['v:/v']}}\nvolumes: {v: {}}",
		"service \"web\": volume \"v:/v\": the path in the container must be absolute, and a volume's name have two characters at least",
	},
	{
		"a device, on other cluster",
		"services: {web: {image: a, devices: ['/dev/fuse']}}",
		"service \"web\": devices /dev/fuse is one of this machine, which another cluster does not have",
	},
	{
		"expose that is no port",
		"services: {web: {image: a, expose: ['http']}}",
		"service \"web\": expose \"http\" is not a port: use a number, or a range such as 8000-8010",
	},
	{
		"unknown network",
		"services: {web: {image: a, networks: [front]}}",
		"DIR/compose.yaml: service \"web\" refers to undefined network front: invalid compose project",
	},
	{
		"unknown volume",
		"services: {web: {image: a, volumes: ['data:/data']}}",
		"DIR/compose.yaml: service \"web\" refers to undefined volume data: invalid compose project",
	},
	{
		"unknown config",
		"services: {web: {image: a, configs: [site]}}",
		"DIR/compose.yaml: service \"web\" refers to undefined config site: invalid compose project",
	},
	{
		"unknown secret",
		"services: {web: {image: a, secrets: [token]}}",
		"DIR/compose.yaml: service \"web\" refers to undefined secret token: invalid compose project",
	},
	{
		"config without content",
		"services: {web: {image: a, configs: [c]}}\nconfigs: {c: {}}",
		"DIR/compose.yaml: configs.c: one of file|environment|content must be set",
	},
	{
		"config file that is missing",
		"services: {web: {image: a, configs: [c]}}\nconfigs: {c: {file: ./missing}}",
		"config \"c\": open DIR/missing: no such file or directory",
	},
	{
		"secret of a variable that is not set",
		"services: {web: {image: a, secrets: [s]}}\nsecrets: {s: {environment: SURELY_NOT_SET}}",
		"secret \"s\": environment variable SURELY_NOT_SET is not set",
	},
	{
		"external secret",
		"services: {web: {image: a, secrets: [s]}}\nsecrets: {s: {external: true}}",
		"secret \"s\": external ones are not supported: give a file, content or environment",
	},
	{
		"external volume that is missing",
		"services: {web: {image: a, volumes: ['vol:/v']}}\nvolumes: {vol: {external: true}}",
		"volume \"vol\": external volume \"vol\" not found: create it with `slipway volume create vol`",
	},
	{
		"size of a volume",
		"services: {web: {image: a, volumes: ['vol:/v']}}\nvolumes: {vol: {driver_opts: {size: big}}}",
		"volume \"vol\": driver_opts.size \"big\": quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
	},
	{
		"depends on nobody",
		"services: {web: {image: a, depends_on: [db]}}",
		"DIR/compose.yaml: service \"web\" depends on undefined service \"db\": invalid compose project",
	},
	{
		"depends on itself",
		"services: {a: {image: a, depends_on: [b]}, b: {image: b, depends_on: [a]}}",
		"DIR/compose.yaml: dependency cycle detected: a -> b -> a",
	},
	{
		"unknown condition",
		"services: {web: {image: a, depends_on: {db: {condition: ready}}}, db: {image: b}}",
		"validating DIR/compose.yaml: services.web.depends_on.db.condition value must be one of 'service_started', 'service_healthy', 'service_completed_successfully'",
	},
	{
		"extends nobody",
		"services: {web: {extends: {service: base}}}",
		"cannot extend service \"web\" in DIR/compose.yaml: service \"base\" not found",
	},
	{
		"health check without a command",
		"services: {web: {image: a, healthcheck: {test: [CMD]}}}",
		"service \"web\": healthcheck.test: CMD needs a command",
	},
	{
		"health check of no kind",
		"services: {web: {image: a, healthcheck: {test: [RUN, x]}}}",
		"DIR/compose.yaml: healthcheck.test must start either by \"CMD\", \"CMD-SHELL\" or \"NONE\"",
	},
	{
		"health check with a wrong duration",
		"services: {web: {image: a, healthcheck: {test: x, interval: 5 minutes}}}",
		"DIR/compose.yaml: decoding failed due to the following error(s):\n\n'services[web].healthcheck.interval' time: unknown unit \" minutes\" in duration \"5 minutes\"",
	},
	{
		"network_mode of a container",
		"services: {web: {image: a, network_mode: 'container:db'}}",
		"service \"web\": network_mode \"container:db\" is not supported: name a service of the project, with service:NAME",
	},
	{
		"a pod of two sizes",
		"services: {web: {image: a, network_mode: 'service:db', scale: 2}, db: {image: b}}",
		"service \"web\" shares a pod with \"db\": both need the same number of replicas",
	},
	{
		"a pod that ends and does not",
		"services: {web: {image: a, network_mode: 'service:db', restart: 'no'}, db: {image: b}}",
		"service \"web\" shares a pod with \"db\", and only one of them runs to completion: give both the same restart policy",
	},
	{
		"network_mode and networks",
		"services: {web: {image: a, network_mode: host, networks: [n]}}\nnetworks: {n: {}}",
		"DIR/compose.yaml: service web declares mutually exclusive `network_mode` and `networks`: invalid compose project",
	},
	{
		"container_name with replicas",
		"services: {web: {image: a, container_name: one, deploy: {replicas: 2}}}",
		"DIR/compose.yaml: services.deploy.replicas: can't set container_name and web as container name must be unique: invalid compose project",
	},
	{
		"scale and replicas differ",
		"services: {web: {image: a, scale: 3, deploy: {replicas: 2}}}",
		"DIR/compose.yaml: services.web: can't set distinct values on 'scale' and 'deploy.replicas': invalid compose project",
	},
	{
		"negative memory",
		"services: {web: {image: a, mem_limit: lots}}",
		"DIR/compose.yaml: decoding failed due to the following error(s):\n\n'services[web].mem_limit' invalid size: 'lots'",
	},
	{
		"wrong number of retries",
		"services: {web: {image: a, restart: 'on-failure:often'}}",
		"service \"web\": restart \"on-failure:often\": \"often\" is not a number of retries",
	},
	{
		"group by name",
		"services: {web: {image: a, group_add: [audio]}}",
		"service \"web\": group_add \"audio\": give the group's number, names differ between images",
	},
	{
		"propagation",
		"services: {web: {image: a, volumes: [{type: bind, source: ., target: /x, bind: {propagation: wild}}]}}",
		"service \"web\": bind.propagation \"wild\" is unknown: use private, slave or shared, or one of these with an r before it",
	},
	{
		"bind source that must exist",
		"services: {web: {image: a, volumes: [{type: bind, source: ./missing, target: /x, bind: {create_host_path: false}}]}}",
		"service \"web\": bind source path does not exist: DIR/missing",
	},
	{
		"bind mount on an other cluster",
		"services: {web: {image: a, volumes: ['.:/x']}}",
		"service \"web\": volume /x binds DIR of this machine, which another cluster does not have: use a named volume or a config",
	},
	{
		"volume of type image",
		"services: {web: {image: a, volumes: [{type: image, source: b, target: /x}]}}",
		"service \"web\": volume /x of type \"image\" is not supported: use volume, bind or tmpfs",
	},
	{
		"names that become the same",
		"services: {my_db: {image: a}, my-db: {image: b}}",
		"services \"my-db\" and \"my_db\": both become my-db, since names are DNS labels: rename one",
	},
	{
		"reserved project name",
		"name: default\nservices: {web: {image: a}}",
		"project name \"default\": namespace default is reserved: choose another name with -p or in the file",
	},
	{
		"reserved prefix",
		"name: kube-system\nservices: {web: {image: a}}",
		"project name \"kube-system\": namespace kube-system is reserved: choose another name with -p or in the file",
	},
	{
		"all services in profiles",
		"services: {web: {image: a, profiles: [x]}}",
		"DIR/compose.yaml: no service is selected: check services and --profile",
	},
}
