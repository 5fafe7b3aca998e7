package identity

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// Published is the certificate of the cluster's authority, PEM, as the policy
// service shows it to everybody who may read its ConfigMap.
func Published(ctx context.Context, api kubernetes.Interface, namespace string) ([]byte, error) {
	m, err := api.CoreV1().ConfigMaps(namespace).Get(ctx, rootsConfigMap, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	if m.Data[certKey] == "" {
		return nil, fmt.Errorf("certificate authority: ConfigMap %s/%s has no %s yet: the policy service writes it when it runs", namespace, rootsConfigMap, certKey)
	}
	return []byte(m.Data[certKey]), nil
}
