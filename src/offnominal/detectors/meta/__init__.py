"""Methods that learn on other categories how to compare, and see a few images of a new one."""
