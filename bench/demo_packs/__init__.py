"""Scripts that train and write the demo packs under assets/demo/."""
