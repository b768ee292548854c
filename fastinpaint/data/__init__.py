"""Images and masks: finding, reading, cropping, drawing; and the dataset that training reads."""
