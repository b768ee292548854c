"""Pictures for people: contact sheets and cells of edges and gradients."""
