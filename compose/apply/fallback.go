package apply

import "k8s.io/streaming/pkg/httpstream"

// isUpgradeFailure tells that a server, or a proxy before it, does not speak WebSocket.
func isUpgradeFailure(err error) bool {
	return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
}
