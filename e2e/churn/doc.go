// Package churn lets a whole cluster change without rest.
package churn
