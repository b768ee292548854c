"""Networks: generator, discriminator and VGG-19 features, with their layers and loaders."""
