// Package compose turns a Compose project into ordinary Kubernetes objects.
//
// Load reads the files with compose-go. Translate is pure: a project and what is known of its images
// go in, a Plan comes out, and equal input gives an equal Plan, byte for byte. What Kubernetes cannot
// say is either an annotation that Slipway's node agent and balancer honour, or a note in the Plan:
// nothing is dropped silently. Applying a Plan is package compose/apply's business.
//
// A service becomes a Deployment (or a Job, when it is meant to end), a Service for its name, one more
// Service for each alias and for its published ports, and NetworkPolicies that keep its networks apart.
package compose
